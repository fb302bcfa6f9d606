"""What an explanation found, as tables, JSON, CSV and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from sifscale import explaining_figures, figures
from sifscale.attribution import Attribution, contributions
from sifscale.explaining_figures import Bar
from sifscale.importance import NO_CLASS, Channels, Exchanged, Importance, by_cover, group_of
from sifscale.metrics import Sums
from sifscale.whole import write_json, write_text

NAME = "importance.json"  # by which a folder is known as an explanation
MAPPED = 5  # channels of an attribution map, those that add most
KINDS = {"group": "by group of predictors", "channel": "by predictor"}
ALL = "all"  # land covers together
INCOMPLETE = 0.05  # share of the whole from which on parts that miss it are called out


@dataclass(frozen=True)
class Explained:
    """What was found: names and numbers of channels, sums of exchanges, attributions or why there are none.

    sets: name -> channels, by kind (``KINDS``). about: what was explained and how, for the files.
    """

    title: str
    units: str
    channels: tuple[str, ...]
    sets: Mapping[str, Mapping[str, Channels]]
    exchanged: Exchanged
    attribution: Attribution | str
    about: Mapping[str, Any]

    def importance(self, channels: Channels) -> Importance:
        """Over all test pixels."""
        return Importance.of(self.exchanged.before, self.exchanged.after[channels])

    @property
    def covers(self) -> list[str]:
        """Classes of land cover with scored pixels; empty where the cube knows none."""
        counts = self.exchanged.before.values[0]
        names = [name for name, n in zip(self.exchanged.classes, counts, strict=True) if n > 0]
        return [] if names == [NO_CLASS] else names


def rows(explained: Explained) -> list[dict[str, Any]]:
    """One row a kind, name and class of land cover ("all": of all test pixels), numbers NaN where there are none.

    rmse_increase in units of the target; squared_error_increase as a share of the squared error before; attribution,
    the mean absolute one, and its standard error in units of the target; attribution_share in 0..1.
    """
    found = []
    for kind, sets in explained.sets.items():
        attribution = explained.attribution
        added = {} if isinstance(attribution, str) else contributions(attribution, sets)
        for name, channels in sets.items():
            by_class = {ALL: explained.importance(channels)}
            if explained.covers:
                by_class |= by_cover(explained.exchanged, channels)
            for cover, importance in by_class.items():
                row: dict[str, Any] = {"kind": kind, "name": name, "cover": cover}
                row["group"] = name if kind == "group" else group_of(name)
                row["rmse_increase"], row["rmse_increase_sd"] = importance.rmse, importance.rmse_sd
                row["squared_error_increase"] = importance.squared_error
                row["squared_error_increase_sd"] = importance.squared_error_sd
                known = added.get(name) if cover == ALL else None
                row["attribution"] = known.mean_absolute if known else math.nan
                row["attribution_standard_error"] = known.standard_error if known else math.nan
                row["attribution_share"] = known.share if known else math.nan
                found.append(row)
    return found


def metrics(explained: Explained) -> dict[str, float]:
    """Increase of the RMSE by group of predictors, by name in MLflow."""
    groups = explained.sets["group"]
    return {f"explain/{name}": explained.importance(channels).rmse for name, channels in groups.items()}


def write(explained: Explained, folder: Path) -> None:
    """importance.json, importance.csv and figures into a folder that exists."""
    found = rows(explained)
    columns = explained.exchanged.before.values.T
    by_class = zip(explained.exchanged.classes, columns, strict=True)
    scores = {name: Sums(column).finish() for name, column in by_class if name in explained.covers}
    whole = explained.exchanged.before.finish()
    attribution = explained.attribution
    gradients: dict[str, Any] = {"left_out": attribution} if isinstance(attribution, str) else {
        "pixels": len(attribution.change),
        "incompleteness": attribution.incompleteness,
        "largest_gap": float(np.abs(attribution.gap).max()),
    }  # fmt: skip
    content = {
        **explained.about,
        "units": explained.units,
        "pixels": int(whole["n"]),
        "rmse": whole["rmse"],
        "cover": {name: {"pixels": int(score["n"]), "rmse": score["rmse"]} for name, score in scores.items()},
        "groups": {name: [explained.channels[i] for i in numbers] for name, numbers in explained.sets["group"].items()},
        "integrated_gradients": gradients,
        "importance": found,
    }
    write_json(folder / NAME, content)
    write_text(folder / "importance.csv", pd.DataFrame(found).to_csv(index=False, float_format="%.6g"))
    for name, figure in pictures(explained).items():
        figures.save(figure, folder / f"{name}.png")


def tables(explained: Explained) -> list[Table]:
    """A table a kind, the most important first, and one of groups by land cover where that is known."""
    found, units = rows(explained), explained.units
    made = []
    for kind, about in KINDS.items():
        table = Table(title=f"{explained.title}: {about}")
        table.add_column("")
        for column in (f"RMSE increase [{units}]", "squared error", f"mean |attribution| [{units}]", "share"):
            table.add_column(column, justify="right")
        chosen = [row for row in found if row["kind"] == kind and row["cover"] == ALL]
        for row in sorted(chosen, key=lambda row: -row["rmse_increase"]):
            table.add_row(
                row["name"],
                _with_error(row["rmse_increase"], row["rmse_increase_sd"], "+"),
                _percent(row["squared_error_increase"], "+"),
                _with_error(row["attribution"], row["attribution_standard_error"]),
                _percent(row["attribution_share"]),
            )
        made.append(table)
    if explained.covers:
        made.append(_cover_table(explained))
    return made


def pictures(explained: Explained) -> dict[str, Figure]:
    """Figures by name."""
    found, units = rows(explained), explained.units
    whole = {kind: [row for row in found if row["kind"] == kind and row["cover"] == ALL] for kind in KINDS}

    def panels(value: str, error: str) -> dict[str, dict[str, Bar]]:
        return {
            KINDS[kind]: {row["name"]: Bar(row[value], row[error], row["group"]) for row in chosen}
            for kind, chosen in whole.items()
        }

    made = {"importance": explaining_figures.bars(
        panels("rmse_increase", "rmse_increase_sd"), label=f"increase of RMSE when exchanged ({units})"
    )}  # fmt: skip
    if explained.covers:
        label = f"increase of RMSE\n({units})"
        names = list(explained.sets["group"])
        made["importance_by_cover"] = explaining_figures.heat_map(
            names, explained.covers, _by_cover(explained), label=label
        )
    if not isinstance(explained.attribution, str):
        label = f"mean absolute attribution ({units})"
        made["attribution"] = explaining_figures.bars(panels("attribution", "attribution_standard_error"), label=label)
        example = explained.attribution.example
        order = np.argsort(-np.abs(explained.attribution.by_channel).mean(axis=0), kind="stable")[:MAPPED]
        predictors, added = (
            {explained.channels[i]: fields[i] for i in order} for fields in (example.predictors, example.attributions)
        )
        made["attribution_map"] = explaining_figures.attribution_maps(predictors, added, example.pixel, units=units)
    return made


def _by_cover(explained: Explained) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Increase of the RMSE (groups, classes)."""
    found = [by_cover(explained.exchanged, channels) for channels in explained.sets["group"].values()]
    return np.array([[by_class[name].rmse for name in explained.covers] for by_class in found])


def _cover_table(explained: Explained) -> Table:
    table = Table(title=f"{explained.title}: RMSE increase [{explained.units}] by group and land cover")
    for number, name in enumerate(["land cover", *explained.sets["group"]]):
        table.add_column(name, justify="right" if number else "left")
    for name, column in zip(explained.covers, _by_cover(explained).T, strict=True):
        table.add_row(name, *(f"{value:+.4f}" for value in column))
    return table


def notes(explained: Explained) -> list[str]:
    """What a reader of the tables must know, in lines."""
    whole, about = explained.exchanged.before.finish(), explained.about
    lines = [
        f"{about['crops']} test crops, {whole['n']:,.0f} pixels, RMSE {whole['rmse']:.4f} {explained.units}; mean and "
        f"standard deviation over {about['repeats']} exchanges of predictors between crops",
        "predictors that go together stand in for one another: what a group is worth is not the sum of its channels",
    ]
    attribution = explained.attribution
    if isinstance(attribution, str):
        return [*lines, f"no integrated gradients: {attribution}"]
    lines.append(
        f"integrated gradients at {len(attribution.change)} pixels: the parts miss the whole by "
        f"{attribution.incompleteness:.2%} of it (root mean square)"
    )
    if attribution.incompleteness > INCOMPLETE:
        lines.append(f"that is more than {INCOMPLETE:.0%}: take more steps of the integral (steps={about['steps']})")
    return lines


def _with_error(value: float, error: float, sign: str = "") -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:{sign}.4f}" + (f" ± {error:.4f}" if math.isfinite(error) else "")


def _percent(share: float, sign: str = "") -> str:
    return f"{share:{sign}.1%}" if math.isfinite(share) else "-"
