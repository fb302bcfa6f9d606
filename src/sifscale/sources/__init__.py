"""Readers, one module a kind of input file; they share the error they raise and how a file is identified."""

from __future__ import annotations

import hashlib
from pathlib import Path


class SourceError(ValueError):
    """An input file cannot be used: one line with the file, what is wrong, where, and what to do."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises SourceError if there is no such file."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file; check paths.raw and the window's file names")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
