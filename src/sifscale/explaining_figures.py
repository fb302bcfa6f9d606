"""The pictures of an explanation: bars of importance, importance by land cover, attributions around a pixel.

As in `figures`, each function takes plain numbers and strings and returns a Figure built without pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sifscale.figures import BLUE, GREEN, MISSING, ORANGE, PINK, RED, typeset

_COLOURS = (BLUE, GREEN, ORANGE, PINK, RED)
_BAR_INCHES, _CELL_INCHES, _PANEL_INCHES = 0.24, 0.75, 2.3
_DARK = 0.55  # share of the scale above which numbers in cells are white

Field = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Bar:
    """One bar: its length, half the length of its error bar (NaN: none), and the group that gives its colour."""

    value: float
    error: float
    group: str


def bars(panels: Mapping[str, Mapping[str, Bar]], *, label: str) -> Figure:
    """Horizontal bars, the longest on top, one panel below the other on one axis, one colour a group.

    panels: title -> name -> bar. label: what the axis shows, with units. Raises ValueError for no bar in a panel, or
    more than five groups.
    """
    if not panels or not all(panels.values()):
        raise ValueError(f"bars need panels with at least one bar each, found {[len(p) for p in panels.values()]}")
    groups = list(dict.fromkeys(bar.group for panel in panels.values() for bar in panel.values()))
    if len(groups) > len(_COLOURS):
        raise ValueError(f"bars have colours for {len(_COLOURS)} groups, found {len(groups)}: {', '.join(groups)}")
    colours = dict(zip(groups, _COLOURS, strict=False))
    heights = [len(panel) * _BAR_INCHES + 0.5 for panel in panels.values()]
    figure = Figure(figsize=(7.2, sum(heights) + 0.9), layout="constrained")
    rows = figure.subplots(len(panels), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (title, panel) in zip(rows, panels.items(), strict=True):
        _draw_bars(axes, panel, colours)
        axes.set_title(title, fontsize="medium", loc="left")
    rows[-1].set_xlabel(typeset(label))
    patches = [Patch(color=colour, label=group) for group, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize="small", frameon=False)
    return figure


def _draw_bars(axes: Axes, panel: Mapping[str, Bar], colours: Mapping[str, str]) -> None:
    order = sorted(panel, key=lambda name: panel[name].value)
    for place, bar in enumerate(panel[name] for name in order):
        error = bar.error if math.isfinite(bar.error) else None
        style = {"ecolor": "0.25", "capsize": 2.5}
        axes.barh(place, bar.value, 0.75, xerr=error, color=colours[bar.group], error_kw=style)
    axes.set_yticks(range(len(order)), order, fontsize="small")
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.axvline(0, color="0.3", lw=0.8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def heat_map(rows: Sequence[str], columns: Sequence[str], values: Field, *, label: str) -> Figure:
    """Values (rows, columns) as colours with numbers in the cells; negative ones count as 0 for the colour.

    label: what they are, with units. NaN stays grey. Raises ValueError for another shape or no finite value.
    """
    if values.shape != (len(rows), len(columns)) or not np.isfinite(values).any():
        raise ValueError(
            f"a heat map of {len(rows)} x {len(columns)} names needs as many values, one of them finite, found shape "
            f"{values.shape} with {int(np.isfinite(values).sum())} finite ones"
        )
    most = max(float(np.nanmax(values)), 0.0)
    figure = Figure(figsize=(_CELL_INCHES * len(columns) + 3, 0.45 * len(rows) + 2.4), layout="compressed")
    axes = figure.add_subplot()
    decimals = max(0, 2 - math.floor(math.log10(most))) if most > 0 else 3  # three digits of the largest
    palette = colormaps["Blues"].with_extremes(bad=MISSING)
    image = axes.imshow(values, cmap=palette, norm=Normalize(0, most or 1.0), aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > _DARK * most > 0 else "black"
            number = f"{round(float(value), decimals) + 0.0:.{decimals}f}".replace("-", "−")  # +0.0: no -0.0
            axes.text(column, row, number, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor", fontsize="small")
    axes.set_yticks(range(len(rows)), rows, fontsize="small")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label=typeset(label), pad=0.02)
    return figure


def attribution_maps(
    predictors: Mapping[str, Field], attributions: Mapping[str, Field], pixel: tuple[int, int], *, units: str
) -> Figure:
    """Predictors of one crop above their attributions to the prediction at one pixel, which a cross marks.

    Both by channel, (y, x), of one shape; attributions in ``units`` share one symmetric scale, each predictor has its
    own. Raises ValueError for no channel, unlike channels or shapes.
    """
    fields = [*predictors.values(), *attributions.values()]
    if not predictors or list(predictors) != list(attributions) or len({field.shape for field in fields}) != 1:
        raise ValueError(
            f"attributions of {list(attributions)} need the predictors of the same channels, fields of one shape, "
            f"found {list(predictors)}"
        )
    limit = max(float(np.nanmax(np.abs(field), initial=0.0)) for field in attributions.values()) or 1.0
    figure = Figure(figsize=(_PANEL_INCHES * len(predictors) + 1.2, 2 * _PANEL_INCHES + 0.9), layout="compressed")
    grid = figure.subplots(2, len(predictors), squeeze=False, sharex=True, sharey=True)
    for column, name in enumerate(predictors):
        above, below = grid[:, column]
        image = above.imshow(predictors[name], cmap=colormaps["viridis"].with_extremes(bad=MISSING))
        figure.colorbar(image, ax=above, location="bottom", pad=0.04, aspect=25).ax.tick_params(labelsize=7)
        above.set_title(name, fontsize="small")
        above.tick_params(labelbottom=False)
        added = below.imshow(attributions[name], cmap="RdBu_r", norm=Normalize(-limit, limit))
        for axes in (above, below):
            axes.plot(pixel[1], pixel[0], "x", color="black", ms=6, mew=1.2)
        below.set_xlabel("x (px)")
    grid[0, 0].set_ylabel("predictor\ny (px)")
    grid[1, 0].set_ylabel("attribution\ny (px)")
    figure.colorbar(added, ax=grid[1, :], label=f"added to the prediction\nat the cross ({typeset(units)})", pad=0.02)
    return figure
