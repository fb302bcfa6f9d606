"""Raw files to a cube:  python build.py window=minnesota_osse"""

import sys

import hydra
from omegaconf import DictConfig

from sifscale.config import BuildCommand, load, refuse

LEFT_OUT = 3  # exit code: the cube is built, but not from all files


@hydra.main(version_base="1.3", config_path="conf", config_name="build")
def main(cfg: DictConfig) -> None:
    try:
        command = load(cfg, BuildCommand)
        from sifscale.windows import build  # xarray loads only for a valid configuration

        complete = build(command)
    except ValueError as error:
        refuse(error)
    if not complete:
        sys.exit(LEFT_OUT)


if __name__ == "__main__":
    main()
