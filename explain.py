"""What a trained model uses:  python explain.py run=RUN"""

import hydra
from omegaconf import DictConfig

from sifscale.config import ExplainConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="explain")
def main(cfg: DictConfig) -> None:
    try:
        config = load(cfg, ExplainConfig)
        from sifscale.explaining import explain  # torch and mlflow load only for a valid configuration

        print(explain(config))
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
