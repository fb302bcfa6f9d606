"""Which input files there are, which of them can be used, and who reads each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xarray as xr

from sifscale.config import Dask, GriddedWindow, Soundings
from sifscale.parallel import run_all
from sifscale.sources import SourceError, file_sha256
from sifscale.sources.caltech import inspect_caltech, read_caltech
from sifscale.sources.mod13 import Granule, check_mod13, inspect_mod13
from sifscale.sources.oco import inspect_oco, read_oco
from sifscale.sources.soundings import Area, GranuleInfo
from sifscale.sources.troposif import inspect_troposif, read_troposif


class SoundingReader(Protocol):
    """How one product of soundings is inspected and read; a new product is one entry in SOUNDING_READERS."""

    def inspect(self, path: Path) -> GranuleInfo: ...

    def read(self, path: Path, section: Soundings, area: Area | None) -> xr.Dataset: ...


class _Troposif:
    def inspect(self, path: Path) -> GranuleInfo:
        return inspect_troposif(path)

    def read(self, path: Path, section: Soundings, area: Area | None) -> xr.Dataset:
        return read_troposif(path, band=section.band, day_length_corrected=section.day_length_corrected, area=area)


class _Caltech:
    def inspect(self, path: Path) -> GranuleInfo:
        return inspect_caltech(path)

    def read(self, path: Path, section: Soundings, area: Area | None) -> xr.Dataset:
        return read_caltech(path, day_length_corrected=section.day_length_corrected, area=area)


class _Oco:
    def inspect(self, path: Path) -> GranuleInfo:
        return inspect_oco(path)

    def read(self, path: Path, section: Soundings, area: Area | None) -> xr.Dataset:
        return read_oco(path, day_length_corrected=section.day_length_corrected, area=area)


SOUNDING_READERS: Mapping[str, SoundingReader] = {"troposif": _Troposif(), "caltech": _Caltech(), "oco": _Oco()}


@dataclass(frozen=True)
class Inventory:
    """Usable granules in the order of their names, {file: reason} for the others, {file: SHA-256} for the usable."""

    soundings: tuple[GranuleInfo, ...]
    granules: tuple[Granule, ...]
    faults: dict[str, str]
    hashes: dict[str, str]


@dataclass(frozen=True)
class _Candidate:
    path: Path
    product: str  # a key of SOUNDING_READERS, or "mod13"


@dataclass(frozen=True)
class _Finding:
    info: GranuleInfo | Granule | None
    fault: str
    sha256: str


def take_stock(window: GriddedWindow, raw: Path, dask: Dask) -> Inventory:
    """Inspect and hash every file that the window's patterns name below `raw`; a bad one is noted, not fatal.

    Raises SourceError where a pattern finds nothing, and under ``strict`` for the first bad file.
    """
    candidates: list[_Candidate] = []
    if window.soundings:
        found = find_files(raw, window.soundings.files, "window.soundings.files")
        candidates += [_Candidate(path, window.soundings.product) for path in found]
    if window.vegetation:
        found = find_files(raw, window.vegetation.files, "window.vegetation.files")
        candidates += [_Candidate(path, "mod13") for path in found]
    findings = run_all(
        _inspect,
        candidates,
        scheduler=dask.scheduler,
        workers=dask.workers,
        memory_limit_mb=dask.memory_limit_mb,
        description="inspecting files",
        report=lambda finding: {"bad": int(bool(finding.fault))},
    )
    faults = {
        relative_name(candidate.path, raw): finding.fault
        for candidate, finding in zip(candidates, findings, strict=True)
        if finding.fault
    }
    if faults and window.strict:
        raise SourceError(next(iter(faults.values())))
    infos = [finding.info for finding in findings]
    return Inventory(
        soundings=tuple(info for info in infos if isinstance(info, GranuleInfo)),
        granules=tuple(info for info in infos if isinstance(info, Granule)),
        faults=faults,
        hashes={
            relative_name(candidate.path, raw): finding.sha256
            for candidate, finding in zip(candidates, findings, strict=True)
            if not finding.fault
        },
    )


def _inspect(candidate: _Candidate) -> _Finding:
    info: GranuleInfo | Granule
    try:
        if candidate.product == "mod13":
            info = _usable_mod13(candidate.path)
        else:
            info = SOUNDING_READERS[candidate.product].inspect(candidate.path)
    except SourceError as error:
        return _Finding(None, str(error), "")
    return _Finding(info, "", file_sha256(candidate.path))


def _usable_mod13(path: Path) -> Granule:
    granule = inspect_mod13(path)
    check_mod13(granule)
    return granule


def find_files(raw: Path, patterns: Sequence[str], key: str) -> list[Path]:
    """Files below `raw` that match the patterns, sorted by name; SourceError where a pattern matches none."""
    found: set[Path] = set()
    for pattern in patterns:
        matches = matching(raw, pattern)
        if not matches:
            raise SourceError(f"{raw / pattern}: no such file; check paths.raw and {key}")
        found.update(matches)
    return sorted(found)


def matching(raw: Path, pattern: str) -> list[Path]:
    """What a pattern, below `raw` or absolute, names; hidden files (downloads under way) are not."""
    anchor = Path(pattern).anchor
    found = Path(anchor).glob(pattern.removeprefix(anchor)) if anchor else raw.glob(pattern)
    return [path for path in found if not path.name.startswith(".")]


def relative_name(path: Path, raw: Path) -> str:
    """How an input file is called in a cube: its path below the raw folder."""
    return path.relative_to(raw).as_posix() if path.is_relative_to(raw) else path.as_posix()
