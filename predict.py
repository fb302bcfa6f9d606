"""A map from a trained run:  python predict.py run=RUN window=minnesota_osse"""

import hydra
from omegaconf import DictConfig

from sifscale.config import PredictConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    try:
        config = load(cfg, PredictConfig)
        from sifscale.prediction import predict  # torch and mlflow load only for a valid configuration

        print(predict(config))
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
