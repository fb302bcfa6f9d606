"""Send runs that a tracking server could not take while it was away:  python send.py"""

import hydra
from omegaconf import DictConfig

from sifscale.config import SendConfig, load, refuse


@hydra.main(version_base="1.3", config_path="conf", config_name="send")
def main(cfg: DictConfig) -> None:
    try:
        config = load(cfg, SendConfig)
        from sifscale.sending import send  # mlflow loads only for a valid configuration

        send(config)
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()
