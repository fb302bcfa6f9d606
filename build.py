"""Raw files to a cube:  python build.py window=minnesota_2019"""

import hydra
from omegaconf import DictConfig

from sifscale.config import BuildConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="build")
def main(cfg: DictConfig) -> None:
    try:
        build = load(cfg, BuildConfig)
        from sifscale.windows import build_cube  # xarray loads only for a valid configuration

        print(build_cube(build))
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
