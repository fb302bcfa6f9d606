"""Config group ``hydra/sweeper=optuna``. Hydra takes sweepers from ``hydra_plugins`` only; all else is in sifscale."""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Hands what Hydra knows of a sweep to :func:`sifscale.search.search`."""

    def __init__(self, **options: Any) -> None:
        """Options are read, and refused, from the whole configuration."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self._loader = hydra_context.config_loader
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from sifscale.search import search  # every command scans this module; optuna and mlflow load for a search only

        assert self.config is not None  # set up by Hydra
        search(self.config, self._loader, self._launcher, arguments)
