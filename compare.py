"""Finished studies side by side:  python compare.py study=osse_demo     Results in a file:  ... readme=README.md"""

import hydra
from omegaconf import DictConfig

from sifscale.config import CompareConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="compare")
def main(cfg: DictConfig) -> None:
    try:
        config = load(cfg, CompareConfig)
        if config.readme:
            from sifscale.results import publish  # mlflow and matplotlib load only for a valid configuration

            publish(config)
        else:
            from sifscale.comparison import compare

            compare(config)
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
