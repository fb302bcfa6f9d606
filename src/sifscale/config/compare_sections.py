"""The section of ``compare.py``: which runs or maps are compared, and how."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo
from pydantic import field_validator as check_field

from sifscale.config.sections import Paths, Tracking
from sifscale.config.types import PositiveInt, Section, distinct


class StudyFile(Section):
    """The table that a study's sweep wrote, and what it is called in the comparison."""

    label: str
    path: str

    @check_field("label")
    @classmethod
    def _names_a_file(cls, label: str) -> str:
        if not re.fullmatch(r"\w[\w.+-]*", label):
            raise ValueError("must be of letters, digits and _ . + -, since it names a file")
        return label


def _listed(value: object) -> object:
    """One file alone is a list of one."""
    return (value,) if isinstance(value, str) else value


Flags = Annotated[tuple[int, ...], Field(strict=False, min_length=1)]


class SoundingsCheck(Section):
    """How a map is compared with soundings; see conf/compare.yaml for the meaning of the values."""

    column: Literal["sif740", "sif740_D", "sif757", "sif757_D", "sif771", "sif771_D"]
    quality_flags: Flags
    cloud_flags: Flags | None
    min_cover: Annotated[float, Field(gt=0, le=1)]
    variable: str | None
    block_px: PositiveInt
    min_per_cell: PositiveInt


class CompareConfig(Section):
    """What ``compare.py`` needs: which runs in ``tracking``, and where the comparison goes.

    study: runs of this study; filter: runs that MLflow's search finds with it; both: runs that both choose. baseline:
    the arm that others are compared with, else the study's. tables: instead of runs, tables that sweeps wrote, scores
    in ``units``. readme: instead, the Markdown file whose generated tables are made anew. soundings: instead, tables of
    soundings that a map is checked with, in the way that ``check`` says.
    """

    paths: Paths
    study: str | None
    filter: str | None
    baseline: str | None
    tables: Annotated[tuple[StudyFile, ...], Field(strict=False, min_length=1)] | None
    units: str
    output: str | None
    readme: str | None
    soundings: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(strict=False, min_length=1)] | None
    map: Annotated[str, Field(min_length=1)] | None
    check: SoundingsCheck
    tracking: Tracking

    @property
    def folder(self) -> Path:
        """Where the comparison goes."""
        kind, name = ("soundings", Path(self.map).stem) if self.map else ("comparison", self.study or "runs")
        return Path(self.output or f"{self.paths.output}/{kind}/{name}")

    @check_field("soundings")
    @classmethod
    def _alone(cls, soundings: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        others = [name for name in ("study", "filter", "tables", "readme") if info.data.get(name)]
        if soundings and others:
            raise ValueError(f"must come without {' and '.join(others)}, which compare runs")
        return soundings

    @check_field("map")
    @classmethod
    def _with_soundings(cls, path: str | None, info: ValidationInfo) -> str | None:
        if "soundings" in info.data and (path is None) != (info.data["soundings"] is None):
            raise ValueError("must come with soundings" if path else "must be given with soundings")
        return path

    @check_field("tables")
    @classmethod
    def _distinct_labels(cls, tables: tuple[StudyFile, ...] | None, info: ValidationInfo) -> object:
        distinct(tuple(table.label for table in tables or ()))
        if tables and "study" in info.data and info.data["study"] is None:
            raise ValueError("must come with study, whose tables they are")
        return tables
