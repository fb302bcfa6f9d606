"""Tables of finished studies side by side:  python compare.py study=osse_demo"""

import hydra
from omegaconf import DictConfig

from sifscale.config import CompareConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="compare")
def main(cfg: DictConfig) -> None:
    try:
        config = load(cfg, CompareConfig)
        from sifscale.comparison import compare  # matplotlib loads only for a valid configuration

        compare(config)
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
