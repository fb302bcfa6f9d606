"""``compare.py soundings=... map=...``: a map against soundings that it was not made from, footprint by footprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyproj import CRS
from rich.table import Table

from sifscale import figures, report
from sifscale.bootstrap import Difference
from sifscale.config import CompareConfig, ConfigError, SoundingsCheck
from sifscale.map_file import MapFile, open_map
from sifscale.soundings_figures import agreement, differences
from sifscale.soundings_matching import Read, match, read_tables
from sifscale.soundings_scores import LABELS, LEAST_BLOCKS, Scored, difference, score, sums_by_block
from sifscale.sources import file_sha256
from sifscale.sources.soundings import SIF_UNITS
from sifscale.whole import write_json, write_text

_LEAST_CELLS = 10  # fewer means say little
MAP, COARSE, CELLS = "map", "native SIF, not made finer", "map, means over native cells"


def check_map(config: CompareConfig) -> None:
    """Print the scores of a map against soundings; write scores.json, soundings.csv, scatter.png, differences.png.

    Raises ValueError, one line a fault, for files that cannot be read, other units, and where nothing matches.
    """
    path, check, folder = Path(config.map or ""), config.check, config.folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {folder} is no folder, so that nothing can be written to it; choose another one")
    with open_map(path, check.variable) as opened:
        if opened.units != SIF_UNITS:
            rule = f"{opened.name} must be in {SIF_UNITS}, as the soundings, since nothing is scaled"
            raise ConfigError([f"map: {rule} (found {opened.units})"])
        read = read_tables(config.soundings or (), check)
        matched, unmatched = match(read, opened, check.min_cover)
        left_out = read.left_out | unmatched
        if matched.empty:
            raise ValueError(_nothing(path, read, opened, left_out))
        scored, gain = scores_of(matched, check, opened.cell_px)
        notes = _notes(read, opened, check, matched, left_out)
        report.show(_table(path, scored, check), *_finding(scored, gain), *notes)
        about = _about(path, read, opened, check)
        days = np.datetime_as_string(opened.days[matched["sample"]], unit="D")
        drawn = _drawn_corners(matched, opened.grid.crs)
    folder.mkdir(parents=True, exist_ok=True)
    kept = matched.drop(columns=[name for name in matched if str(name)[:2] in ("x_", "y_")])
    kept.insert(0, "difference", matched["map"] - matched["sounding"])
    kept["sample_start"], kept["sample_end"] = days[:, 0], days[:, 1]
    write_text(folder / "soundings.csv", kept.to_csv(index=False))
    found: dict[str, Any] = {name: one.to_json() for name, one in scored.items()}
    found["rmse_map_less_native"] = None if gain is None else asdict(gain)
    content = {"scores": found, "units": SIF_UNITS, "left_out": left_out, "notes": notes, **about}
    write_json(folder / "scores.json", content)
    _draw(folder, matched, scored, drawn)
    report.show(f"check: {folder}")


def scores_of(
    matched: pd.DataFrame, check: SoundingsCheck, cell_px: int | None
) -> tuple[dict[str, Scored], Difference | None]:
    """Scores of the map, of native SIF where it is known, and of the map's means over native cells where there are
    enough; and the RMSE of the map less that of native SIF on the soundings that have both.
    """
    block = _block(matched, check.block_px)
    values = {name: matched[name].to_numpy(np.float64) for name in ("sounding", "sounding_error", "map", "coarse")}
    sounding, error = values["sounding"], values["sounding_error"]
    scored, gain = {MAP: score(values["map"], sounding, error, block)}, None
    known = np.isfinite(values["coarse"])
    if known.any():
        there = [name for name, has in zip(block, known, strict=True) if has]
        scored[COARSE] = score(values["coarse"][known], sounding[known], error[known], there)
        gain = difference(
            *(sums_by_block(values[name][known], sounding[known], there) for name in ("map", "coarse"))
        )
    if cell_px:
        means = cell_means(matched, cell_px, check.min_per_cell)
        if len(means) >= _LEAST_CELLS:
            mean, sounding, error = (means[name].to_numpy(np.float64) for name in ("map", "sounding", "sounding_error"))
            scored[CELLS] = score(mean, sounding, error, _block(means, check.block_px))
    return scored, gain


def cell_means(matched: pd.DataFrame, cell_px: int, least: int) -> pd.DataFrame:
    """Means over the soundings of each native cell and sample that has at least ``least``, by their centres.

    Columns map, sounding, sounding_error (of the mean, errors being independent), row and column (of the cell's first
    pixel).
    """
    cells = matched.assign(
        row=matched["row"] // cell_px * cell_px,
        column=matched["column"] // cell_px * cell_px,
        squares=matched["sounding_error"] ** 2,
    )
    grouped = cells.groupby(["sample", "row", "column"])
    number = grouped.size()
    means = grouped[["map", "sounding"]].mean()
    means["sounding_error"] = np.sqrt(grouped["squares"].sum()) / number
    return means[number >= least].reset_index()


def _block(matched: pd.DataFrame, block_px: int) -> list[str]:
    """Block of the map of each row, by its pixel; all samples of a place are one block, as their errors are alike."""
    return [f"{row}:{column}" for row, column in (matched[["row", "column"]].to_numpy() // block_px).tolist()]


def _nothing(path: Path, read: Read, opened: MapFile, left_out: Mapping[str, int]) -> str:
    """Why no sounding matches, with both extents."""
    soundings = read.soundings
    longitude, latitude = soundings["longitude"].values, soundings["latitude"].values
    day = soundings["time"].values.astype("datetime64[D]")
    west, south, east, north = opened.extent_deg()
    why = ", ".join(f"{reason}: {number}" for reason, number in left_out.items() if number)
    return (
        f"no sounding has a value of {path}: the soundings lie in {_box(longitude.min(), longitude.max())} E, "
        f"{_box(latitude.min(), latitude.max())} N on {day.min()}..{day.max()}, the map in {_box(west, east)} E, "
        f"{_box(south, north)} N on {opened.days.min()}..{opened.days.max()} (of {read.rows} left out: {why}); choose "
        "another map or table"
    )


def _box(low: float, high: float) -> str:
    return f"{low:.2f}..{high:.2f}"


def _notes(
    read: Read, opened: MapFile, check: SoundingsCheck, matched: pd.DataFrame, left_out: Mapping[str, int]
) -> list[str]:
    """What was compared, what was left out, and what is assumed."""
    why = "; ".join(f"{reason}: {number:,}" for reason, number in left_out.items() if number)
    kind = "daily means" if check.column.endswith("_D") else "of a moment"
    notes = [
        f"{len(matched):,} of {read.rows:,} soundings of {len(read.files)} table(s) matched; left out: {why or 'none'}",
        f"assumed: {opened.name} and {check.column} ({check.column[3:6]} nm, {kind}) are one quantity in {SIF_UNITS}; "
        "nothing was scaled for wavelength, time of day or angle of view",
    ]
    if opened.daily_means is not None and opened.daily_means != check.column.endswith("_D"):
        other = check.column.removesuffix("_D") + ("_D" if opened.daily_means else "")
        of_map = "daily means" if opened.daily_means else "values of a moment"
        notes.append(f"attention: the map holds {of_map}, {check.column} does not; take check.column={other}")
    if check.column[3:6] != "740":
        notes.append(f"attention: SIF at {check.column[3:6]} nm differs from that at 740 nm, which TROPOMI's refers to")
    if opened.cell_px is None:
        notes.append("no comparison with native SIF: the map does not conserve it, or does not say how large a cell is")
    return notes


def _finding(scored: Mapping[str, Scored], gain: Difference | None) -> list[str]:
    """In words: what of the RMSE is the soundings' own error, and whether the map is better than native SIF."""
    found = scored[MAP].values
    lines = [
        f"one sounding has an error of {found['sounding_error']:.3f}, the map differs from soundings by RMSE "
        f"{found['rmse']:.3f}: {found['rmse_beyond_error']:.3f} are left for the map [{SIF_UNITS}]"
    ]
    if scored[MAP].blocks < LEAST_BLOCKS:
        lines.append(
            f"no intervals: the soundings lie in {scored[MAP].blocks} block(s) of the map, {LEAST_BLOCKS} are needed; "
            "more soundings, or a smaller check.block_px"
        )
    if gain is None:
        return lines
    ends = "no interval" if np.isnan(gain.low) else f"[{gain.low:+.4f}, {gain.high:+.4f}], p {gain.p:.2g}"
    says = "no difference is resolved"
    if gain.high < 0:
        says = "the map is better than the native SIF that it was made from"
    elif gain.low > 0:
        says = "the map is worse than the native SIF that it was made from"
    return [*lines, f"RMSE of the map less that of native SIF: {gain.difference:+.4f} ({ends}): {says}"]


def _table(path: Path, scored: Mapping[str, Scored], check: SoundingsCheck) -> Table:
    table = Table(title=f"{path.name} against {check.column}, 95 % intervals over blocks of the map")
    table.add_column(f"[{SIF_UNITS}] but for n, r and slopes")
    for name in scored:
        table.add_column(name, justify="right")
    for key, label in LABELS.items():
        table.add_row(label, *(one.text(key) for one in scored.values()))
    return table


def _about(path: Path, read: Read, opened: MapFile, check: SoundingsCheck) -> dict[str, object]:
    """Where scores come from."""
    attrs = opened.dataset.attrs
    origin = {key: str(attrs[key]) for key in ("title", "run_id", "checkpoint_hash", "cube_hash") if key in attrs}
    return {
        "map": {"path": str(path), "variable": opened.name, **origin},
        "soundings": {str(file): file_sha256(file) for file in read.files},
        "check": check.model_dump(mode="json"),
    }


def _drawn_corners(matched: pd.DataFrame, crs: str) -> tuple[NDArray[np.float64], str, float]:
    """Corners (n, 4, 2) as they are drawn, the unit of the axes, and the height of a unit of y in those of x."""
    corners = np.stack([matched[[f"{axis}_{i}" for i in range(1, 5)]].to_numpy() for axis in ("x", "y")], axis=-1)
    if CRS.from_wkt(crs).is_geographic:
        return corners, "degrees", 1 / max(np.cos(np.deg2rad(corners[..., 1].mean())), 0.1)
    unit = CRS.from_wkt(crs).axis_info[0].unit_name
    return (corners / 1000, "km", 1.0) if unit == "metre" else (corners, unit, 1.0)


def _draw(
    folder: Path, matched: pd.DataFrame, scored: Mapping[str, Scored], drawn: tuple[NDArray[np.float64], str, float]
) -> None:
    sounding, values = matched["sounding"].to_numpy(), {MAP: "map", COARSE: "coarse"}
    panels = {name: matched[column].to_numpy() for name, column in values.items() if name in scored}
    scores = {name: scored[name].values for name in panels}
    figures.save(agreement(sounding, panels, scores, units=SIF_UNITS), folder / "scatter.png")
    corners, unit, aspect = drawn
    where = differences(corners, sounding, panels[MAP], units=SIF_UNITS, axis_units=unit, aspect=aspect)
    figures.save(where, folder / "differences.png")
