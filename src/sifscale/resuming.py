"""The folder of a run, and whether a stopped run may go on in it."""

from __future__ import annotations

from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig

from sifscale.config import ConfigError, RunConfig
from sifscale.config.no_result import changes_result
from sifscale.tracking import flat, is_main_process, process_rank


def run_folder(run: RunConfig) -> Path:
    """The folder of a command: Hydra's, or the one that is resumed."""
    folder = Path(run.resume) if run.resume else Path(HydraConfig.get().runtime.output_dir)
    if run.resume:
        _check_resumable(run, folder)
    if not is_main_process():  # its files are of no use, but must not meet those of the main process
        folder = folder / _own_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _own_folder() -> str:
    return f".process_{process_rank()}"


def checkpoint_folder(folder: Path) -> Path:
    """Where checkpoints of a run with this folder, `run_folder` or below it, are: only the main process writes them."""
    if not is_main_process():
        folder = Path(*(part for part in folder.parts if part != _own_folder()))
    return folder / "checkpoints"


def _check_resumable(run: RunConfig, folder: Path) -> None:
    """A run goes on only as what it was: the same configuration, key by key."""
    if not (folder / "run_id").exists() or not (folder / "config.yaml").exists():
        raise ConfigError([f"resume: must be the folder of a run that had started (found '{run.resume}')"])
    was, now = (
        flat(values)
        for values in (yaml.safe_load((folder / "config.yaml").read_text()), run.model_dump(mode="json"))
    )
    # where it is logged as well: its MLflow run is in one database
    fixed = [key for key in now | was if changes_result(key) or key.startswith("tracking.")]
    changed = [key for key in fixed if was.get(key) != now.get(key)]
    if changed:
        raise ConfigError(
            [
                f"{key}: must be as in the run that is resumed, {was.get(key)} (found {now.get(key)})"
                for key in changed
            ]
        )


def resumed_run_id(folder: Path) -> str:
    return (folder / "run_id").read_text().strip()
