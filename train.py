"""Train and test one model:  python train.py model=unet features=lbp      A sweep:  python train.py -m ..."""

import hydra
from omegaconf import DictConfig

from sifscale.config import RunConfig, load
from sifscale.jobs import errors_reported
from sifscale.start import Start
from sifscale.sweep import closed_whatever_happens


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    with errors_reported():
        run = load(cfg, RunConfig)
        if run.check:
            print(f"ok: {run.label}")
            return
        start = Start()
        from sifscale.cross_validation import train  # torch and mlflow load only for a valid configuration

        train(run, start)


if __name__ == "__main__":
    with closed_whatever_happens():
        main()
