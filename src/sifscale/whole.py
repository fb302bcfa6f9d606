"""Outputs that are whole or absent: temporary names, taking the final name, and what killed processes leave."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PARTIAL, REPLACED = "partial", "replaced"


def temporary(path: Path, kind: str = PARTIAL) -> Path:
    """A hidden name beside `path` that tells which process made it."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.{kind}")


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary name beside the file `path`, to be renamed when it is complete; what is left there goes."""
    remove_leftovers(path)
    partial = temporary(path)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, whole or not at all."""
    with written_beside(path) as partial:
        partial.write_text(text, encoding="utf-8")
        take_name(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; null stands for NaN and infinity, which JSON does not know."""
    write_text(path, json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")


def take_name(partial: Path, path: Path) -> None:
    """Rename a complete output to its final name; an old folder steps aside, as folders cannot be replaced."""
    if not path.is_dir():
        os.replace(partial, path)
        return
    retired = temporary(path, REPLACED)
    os.replace(path, retired)
    try:
        os.replace(partial, path)
    except BaseException:
        os.replace(retired, path)
        raise
    shutil.rmtree(retired)


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of earlier attempts at `path`; those of living processes stay.

    An output that had stepped aside for a new one which never came takes its name again.
    """
    # The whole name is matched: `raw` must not take what belongs to a neighbour called `raw.5`.
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.[0-9a-f]{{32}}\.({PARTIAL}|{REPLACED})")
    for leftover in path.parent.glob(f".{path.name}.*"):
        owner = name.fullmatch(leftover.name)
        if not owner or _is_alive(int(owner[1])):
            continue
        if owner[2] == REPLACED and not path.exists():
            log.info("restoring %s, set aside by a process that was killed", path)
            os.replace(leftover, path)
        else:
            log.info("removing %s, left by a process that was killed", leftover)
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only asks whether there is such a process
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
