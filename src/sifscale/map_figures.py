"""Figures of maps: the fields of one composite side by side, and a season as frames.

As in `figures`, functions take plain arrays and strings; figures are built without pyplot. Fields are (y, x), y from
north to south, NaN where there is no value; all of one figure cover the area of its `Frame`, at any resolution.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

from sifscale.figures import MISSING, limits, typeset
from sifscale.map_frame import Frame

SIF_COLOURS = "viridis"
_ERROR_COLOURS, _SPREAD_COLOURS = "RdBu_r", "magma"
_WIDEST_INCHES = {2: 5.0, 3: 4.1, 4: 3.1, 5: 2.6}  # a panel, by panels in a row
_TALL = 1.3  # a map so much higher than wide has all its panels in one row
_TALLEST_INCHES, _LEAST_INCHES = 5.0, 0.3
_NARROWEST_INCHES = 2.3  # what a panel's title and the label of a colour bar need
_LEFT, _RIGHT, _BETWEEN = 0.6, 0.25, 0.2  # inches beside panels
_TITLE, _HEAD, _BAR_BELOW, _BAR, _LABELS, _FOOT = 0.38, 0.3, 0.3, 0.13, 0.5, 0.6  # inches above and below them
_LABEL_INCHES = np.array([0.6, 0.25])  # what a label of degrees takes along x and along y
_SETTERS = (Axes.set_xticks, Axes.set_yticks)
_HATCH = "////"
_FRAME_DPI, _FRAME_INCHES = 100, 6.0

Field = NDArray[np.floating[Any]]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Composite:
    """What is shown of one composite; error: the map less the truth. truth_name: "truth", or "observed".

    filled: True where SIF was not observed but filled. notes: a line of provenance below the panels.
    """

    title: str
    coarse: Field
    fine: Field
    truth: Field | None
    error: Field | None
    standard_error: Field | None
    filled: NDArray[np.bool_]
    notes: str
    truth_name: str = "truth"


@dataclass(frozen=True, eq=False)
class _Panel:
    heading: str
    field: Field
    colours: str
    scale: Normalize
    label: str


def composite_figure(shown: Composite, frame: Frame, *, quantity: str, units: str) -> Figure:
    """Coarse, map and, where they are given, truth, error and standard error of a quantity ("SIF") in ``units``.

    One scale holds percentiles 2 to 98 of coarse, map and truth, that of the error its own, symmetric, that of the
    standard error 0 to percentile 98. Raises ValueError where a field has no finite value.
    """
    panels = _panels(shown, quantity, typeset(units))
    columns = 3 if len(panels) > 4 and frame.height_to_width < _TALL else len(panels)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    widest, tallest = _WIDEST_INCHES[columns], _TALLEST_INCHES
    width = max(min(widest, tallest / frame.height_to_width), _LEAST_INCHES)
    height = max(min(width * frame.height_to_width, tallest), _LEAST_INCHES)
    cell = max(width, _NARROWEST_INCHES)
    row_inches = _HEAD + height + _BAR_BELOW + _BAR + _LABELS
    size = (_LEFT + columns * (cell + _BETWEEN) - _BETWEEN + _RIGHT, _TITLE + len(rows) * row_inches + _FOOT)
    figure = Figure(figsize=size)
    figure.suptitle(shown.title, y=1 - 0.14 / size[1], va="top", fontsize="large")
    for number, row in enumerate(rows):
        bottom = size[1] - _TITLE - number * row_inches - _HEAD - height
        _draw_row(figure, row, shown, frame, (bottom, width, height))
    _draw_key(figure, shown, size)
    return figure


def _draw_row(
    figure: Figure, row: list[_Panel], shown: Composite, frame: Frame, inches: tuple[float, float, float]
) -> None:
    """Panels with their bars, one for neighbours of one scale. inches: lower edge, width and height of the panels."""
    bottom, width, height = inches
    cell, size = max(width, _NARROWEST_INCHES), tuple(figure.get_size_inches())
    lefts = [_LEFT + place * (cell + _BETWEEN) for place in range(len(row))]
    for left, panel in zip(lefts, row, strict=True):
        axes = figure.add_axes(_share(left + (cell - width) / 2, bottom, width, height, size))
        draw_map(axes, panel.field, frame, panel.colours, panel.scale)
        axes.set_title(panel.heading, fontsize="medium", pad=5)
        axes.tick_params(labelleft=panel is row[0])
        if panel.heading == "coarse":
            _draw_scale_bar(axes, frame)
        if panel.heading == "map" and shown.filled.any():
            _hatch(axes, shown.filled, frame)
    for _, group in groupby(zip(lefts, row, strict=True), key=lambda member: member[1].label):
        members = list(group)
        left, length = members[0][0], len(members) * (cell + _BETWEEN) - _BETWEEN
        axes = figure.add_axes(_share(left, bottom - _BAR_BELOW - _BAR, length, _BAR, size))
        _colour_bar(axes, members[0][1], length)


def _panels(shown: Composite, quantity: str, units: str) -> list[_Panel]:
    fields = {"coarse": shown.coarse, "map": shown.fine, shown.truth_name: shown.truth}
    known = {name: field for name, field in fields.items() if field is not None}
    scale, label = Normalize(*limits(quantity, list(known.values()))), f"{quantity} ({units})"
    panels = [_Panel(name, field, SIF_COLOURS, scale, label) for name, field in known.items()]
    if shown.error is not None:
        most = float(np.abs(limits("error", [shown.error])).max())
        label = f"map − {shown.truth_name} ({units})"
        panels.append(_Panel("error", shown.error, _ERROR_COLOURS, Normalize(-most, most), label))
    if shown.standard_error is not None:
        most = limits("standard error", [shown.standard_error])[1]
        label = f"standard error ({units})"
        panels.append(_Panel("uncertainty", shown.standard_error, _SPREAD_COLOURS, Normalize(0, most), label))
    return panels


def _share(left: float, bottom: float, width: float, height: float, size: tuple[float, ...]) -> Box:
    return left / size[0], bottom / size[1], width / size[0], height / size[1]


def draw_map(axes: Axes, field: Field, frame: Frame, colours: str, scale: Normalize) -> Any:
    """A field with borders and degrees on axes of the map's proportions; returns the image."""
    west, south, east, north = frame.bounds
    palette = colormaps[colours].with_extremes(bad=MISSING)
    image = axes.imshow(
        field, cmap=palette, norm=scale, extent=(west, east, south, north), aspect="auto", interpolation="nearest"
    )
    for lines, width in ((frame.borders.outlines, 0.8), (frame.borders.states, 0.6)):
        for colour, wider, strength in (("white", 1.2, 0.5), ("black", 0.0, 0.9)):  # seen on dark and bright ground
            axes.add_collection(LineCollection(lines, colors=colour, linewidths=width + wider, alpha=strength))
    axes.set(xlim=(west, east), ylim=(south, north))
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.get_position().size * figure.get_size_inches()
    for ticks, room, setter in zip((frame.x_ticks, frame.y_ticks), inches / _LABEL_INCHES, _SETTERS, strict=True):
        shown = ticks[:: max(1, math.ceil(len(ticks) / max(room, 1)))]
        setter(axes, [place for place, _ in shown], [label for _, label in shown])
    axes.tick_params(labelsize="x-small", length=3, color="0.4", labelcolor="0.25")
    axes.spines[:].set(color="0.4", linewidth=0.6)
    return image


def _draw_scale_bar(axes: Axes, frame: Frame) -> None:
    if frame.scale_bar is None:
        return
    length, label = frame.scale_bar
    bar = AnchoredSizeBar(
        axes.transData, length, label, "lower left", pad=0.4, borderpad=0.4, sep=3, size_vertical=0,
        label_top=True, fontproperties={"size": "x-small"},
    )  # fmt: skip
    bar.patch.set(facecolor="white", edgecolor="none", alpha=0.85)
    axes.add_artist(bar)


def _hatch(axes: Axes, where: NDArray[np.bool_], frame: Frame) -> None:
    west, south, east, north = frame.bounds
    tall, wide = where.shape
    x = west + (np.arange(wide) + 0.5) * (east - west) / wide
    y = north - (np.arange(tall) + 0.5) * (north - south) / tall
    if min(tall, wide) > 1:  # contours need two rows and columns
        hatched = axes.contourf(x, y, where.astype(float), levels=[0.5, 1.5], colors="none", hatches=[_HATCH])
        hatched.set(edgecolor="white", linewidth=0)


def _colour_bar(axes: Axes, panel: _Panel, length_inches: float) -> None:
    figure = axes.get_figure()
    assert figure is not None
    extend = "max" if panel.colours == _SPREAD_COLOURS else "both"  # no standard error is below 0
    bar = figure.colorbar(
        ScalarMappable(panel.scale, panel.colours), cax=axes, orientation="horizontal", extend=extend,
        extendfrac=0.12 / length_inches,
    )  # fmt: skip
    bar.ax.locator_params(nbins=max(3, int(length_inches * 1.6)))
    bar.ax.tick_params(labelsize="small")
    bar.set_label(panel.label, fontsize="small")


def _draw_key(figure: Figure, shown: Composite, size: tuple[float, float]) -> None:
    patches = [Patch(facecolor=MISSING, edgecolor="0.5", label="no value")]
    if shown.filled.any():
        patches.append(Patch(facecolor="0.55", edgecolor="white", hatch=_HATCH, label="not observed: gap filled"))
    at = (0.5, (_FOOT - 0.05) / size[1])
    figure.legend(handles=patches, loc="upper center", bbox_to_anchor=at, ncols=2, frameon=False, fontsize="small")
    lines = textwrap.wrap(shown.notes, max(40, int(size[0] * 15)))[:2]
    figure.text(0.5, 0.06 / size[1], "\n".join(lines), ha="center", va="bottom", fontsize="x-small", color="0.4")


def season_frames(
    fields: Mapping[str, Field], frame: Frame, scale: tuple[float, float], *, title: str, label: str
) -> list[Image.Image]:
    """One picture a composite, by its date, all with one scale and of one size, for an animation.

    label: of the scale, with units.
    """
    width = min(_FRAME_INCHES, _TALLEST_INCHES / frame.height_to_width)
    height = max(width * frame.height_to_width, _LEAST_INCHES)
    wide = max(width, _NARROWEST_INCHES * 1.6)
    size = (_LEFT + wide + _RIGHT, _TITLE + _HEAD + height + _BAR_BELOW + _BAR + _LABELS)
    figure = Figure(figsize=size, dpi=_FRAME_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, y=1 - 0.14 / size[1], va="top", fontsize="medium", color="0.25")
    left, bottom = _LEFT + (wide - width) / 2, _BAR_BELOW + _BAR + _LABELS
    axes = figure.add_axes(_share(left, bottom, width, height, size))
    image = draw_map(axes, next(iter(fields.values())), frame, SIF_COLOURS, Normalize(*scale))
    _draw_scale_bar(axes, frame)
    bar = figure.add_axes(_share(left, bottom - _BAR_BELOW - _BAR, width, _BAR, size))
    _colour_bar(bar, _Panel("", np.empty((0, 0)), SIF_COLOURS, Normalize(*scale), typeset(label)), width)
    frames = []
    for date, field in fields.items():
        image.set_data(field)
        axes.set_title(date, fontsize="large", fontweight="bold", pad=6)
        canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib has no annotations there
        drawn = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]  # nor there
        frames.append(_with_palette(drawn))
    return frames


def _with_palette(drawn: NDArray[np.uint8]) -> Image.Image:
    """A drawing (y, x, 3) in the 256 colours of all frames: those of the scale, and greys for text and what is missing.

    An own palette for each frame, as Pillow makes it, would let colours flicker; it matches given ones only roughly.
    """
    greys = np.linspace(0, 255, 52)[:, None].repeat(3, axis=1)
    palette = np.concatenate([255 * colormaps[SIF_COLOURS](np.linspace(0, 1, 204))[:, :3], greys]).round()
    packed, place = np.unique(drawn @ np.array([2**16, 2**8, 1]), return_inverse=True)
    colours = np.column_stack([packed >> 16, packed >> 8 & 255, packed & 255])
    nearest = KDTree(palette).query(colours)[1].astype(np.uint8)
    image = Image.fromarray(nearest[place].reshape(drawn.shape[:2]))
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image
