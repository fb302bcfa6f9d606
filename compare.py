"""Which choice matters:  python compare.py study=honest_minnesota     Results in a file:  ... readme=README.md"""

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
        elif config.tables is None:
            from sifscale.run_comparison import compare_runs

            compare_runs(config)
        else:
            from sifscale.comparison import compare

            compare(config)
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
