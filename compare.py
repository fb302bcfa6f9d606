"""Which choice matters:  python compare.py study=NAME     Is a map right:  ... soundings=FILE.csv map=MAP.zarr"""

import hydra
from omegaconf import DictConfig

from sifscale.config import CompareConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="compare")
def main(cfg: DictConfig) -> None:
    try:
        config = load(cfg, CompareConfig)
        from sifscale.comparing import compare  # mlflow and matplotlib load only for a valid configuration

        compare(config)
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
