"""Train and test one model:  python train.py model=unet features=lbp      A sweep:  python train.py -m ..."""

import hydra
from omegaconf import DictConfig

from sifscale.config import RunConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    try:
        run = load(cfg, RunConfig)
        if run.check:
            print(f"ok: {run.label}")
            return
        from sifscale.cross_validation import train  # torch and mlflow load only for a valid configuration

        train(run)
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
