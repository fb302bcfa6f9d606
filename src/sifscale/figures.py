"""Every picture of a run.

Each function takes plain arrays and strings and returns a `matplotlib.figure.Figure`, built without pyplot:
calls, threads and jobs share nothing. Fields are (y, x), y from north to south; missing values are grey.
"""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

SIF_UNITS = "mW m-2 sr-1 nm-1"
LOG_SCALE_RANGE = 20.0  # a loss that falls by more than this cannot be read on a linear axis
MAPS_LEAST_WIDTH = 7.0  # inches: what the labels need where fields are tall and narrow
MAX_LBP_CHANNELS = 11  # with the source, a page of 3 x 4
MISSING = "0.85"
# Okabe & Ito (2008), told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN, PINK, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
_LOSS, _R2 = "loss (dimensionless)", "validation R² (dimensionless)"
_PANELS = {
    _LOSS: {"train/loss": BLUE, "val/loss": RED},
    _R2: {"val/r2": RED},
    "validation error": {"val/rmse": RED, "val/mae": GREEN},
}
_PARTS = {"train": BLUE, "validation": ORANGE, "test": PINK, "guard": MISSING}
_OTHER_PARTS = ["white", GREEN, "#56B4E9", RED, "#F0E442", "black"]
# tab20, strong colours before pale ones, without its two greys: grey means missing.
_CODE_COLOURS = [colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2)) if i not in (14, 15)]

Field = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class MapRow:
    """One row of `maps`: coarse (on the target's grid), prediction and target, all (y, x) in one unit."""

    title: str
    coarse: Field
    prediction: Field
    target: Field


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as PNG (130 dpi), making its folder; `path` appears complete or not at all.

    Raises ValueError if `path` does not end in .png.
    """
    if path.suffix != ".png":
        raise ValueError(f"figures are written as PNG, but the path is {path.name}; let it end in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(unfinished, format="png", dpi=130)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def curves(
    history: Mapping[str, Sequence[tuple[int, float]]], best_epoch: int | None, *, units: str = SIF_UNITS
) -> Figure:
    """Loss and validation metrics against epoch, the best epoch marked.

    `history` maps metric names to (epoch, value) pairs; drawn are train/loss, val/loss, val/r2, and in
    `units` val/rmse and val/mae, as far as they are there. The loss axis is logarithmic where all losses are
    positive and span more than a factor of 20; values that are not finite are gaps. Raises ValueError if none
    of the five is there or `best_epoch` was never logged.
    """
    shown = {label: [n for n in names if history.get(n)] for label, names in _PANELS.items()}
    shown = {label: names for label, names in shown.items() if names}
    epochs = {epoch for names in shown.values() for name in names for epoch, _ in history[name]}
    if not shown:
        raise ValueError(f"history holds {sorted(history)}; log one of train/loss, val/loss, r2, rmse, mae")
    if best_epoch is not None and best_epoch not in epochs:
        raise ValueError(f"best_epoch is {best_epoch}, not logged; give one of {min(epochs)}..{max(epochs)}")
    figure = Figure(figsize=(4 * len(shown), 3.4))
    figure.set_layout_engine("constrained", wspace=0.06)
    for i, (label, names) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), i + 1, xlabel="epoch")
        axes.set_ylabel(label if label in (_LOSS, _R2) else f"{label} ({typeset(units)})")
        for name in names:
            colour = _PANELS[label][name]
            epoch, value = np.array(history[name], dtype=float).T
            value[~np.isfinite(value)] = np.nan
            axes.plot(epoch, value, color=colour, marker="." if epoch.size < 15 else None, label=name)
            axes.plot(epoch[epoch == best_epoch], value[epoch == best_epoch], "o", color=colour)
        if label == _LOSS and _needs_log_scale([v for name in names for _, v in history[name]]):
            axes.set_yscale("log")
        if best_epoch is not None:
            axes.axvline(best_epoch, color="0.35", lw=1, ls="--", zorder=1, label=f"best epoch: {best_epoch}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", edgecolor="none")
    return figure


def scatter(actual: Field, predicted: Field, *, label: str, units: str, r2: float, rmse: float) -> Figure:
    """Predicted against observed values as hexagon counts, with the 1:1 and the least-squares line.

    `actual` and `predicted` have one shape; pairs with a member that is not finite are left out. `label`
    names the quantity ("SIF743"). `r2` and `rmse` are printed as given: they come from the metrics, never
    from a picture. Raises ValueError for unlike shapes or fewer than two finite pairs.
    """
    if actual.shape != predicted.shape:
        raise ValueError(f"actual has shape {actual.shape}, predicted {predicted.shape}; pass equal shapes")
    finite = np.isfinite(actual) & np.isfinite(predicted)
    x, y = actual[finite].astype(float), predicted[finite].astype(float)
    if x.size < 2:
        raise ValueError(f"a scatter needs at least 2 finite pairs, found {x.size}; check the valid mask")
    low, high = _widened(min(x.min(), y.min()), max(x.max(), y.max()))
    ends = np.array([low - 0.03 * (high - low), high + 0.03 * (high - low)])
    figure = Figure(figsize=(5.2, 4.3), layout="compressed")
    axes = figure.add_subplot(aspect="equal", xlim=ends, ylim=ends)
    # Hexagons are regular on a square where there are sqrt(3) times as many across as up.
    hexagons = axes.hexbin(x, y, gridsize=(50, 29), extent=(*ends, *ends), mincnt=1, linewidths=0.2)
    hexagons.set_cmap("viridis")
    hexagons.set_norm(LogNorm(1, max(10.0, np.max(np.asarray(hexagons.get_array(), dtype=float)))))
    figure.colorbar(hexagons, ax=axes, label="pixels per hexagon (count)", pad=0.02)
    axes.plot(ends, ends, color="black", lw=1, ls="--", label="1:1")
    if np.ptp(x) > 0:
        slope, offset = np.polyfit(x, y, 1)
        equation = f"fit: {slope:.2f} x {'−' if offset < 0 else '+'} {abs(offset):.2f}"
        axes.plot(ends, slope * ends + offset, color=RED, label=equation)
    text = f"n = {x.size:,}\nR² = {r2:.3f}\nRMSE = {rmse:.3f} {typeset(units)}"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize="small", bbox=box)
    axes.legend(loc="lower right", fontsize="small", edgecolor="none")
    axes.set(xlabel=f"observed {label} ({typeset(units)})", ylabel=f"predicted {label} ({typeset(units)})")
    return figure


def maps(rows: Sequence[MapRow], *, units: str) -> Figure:
    """Coarse, prediction, target and error (prediction - target), one row a field or crop.

    The first three columns of all rows share one scale, percentiles 2 to 98 of all targets; the errors share
    one that is symmetric and holds their percentiles 2 to 98. Rows may differ in shape. Raises ValueError for
    no rows, a row whose fields differ in shape or are not 2-D, or no finite target or error.
    """
    if not rows:
        raise ValueError("maps found no rows; pass one MapRow for each field to show")
    for row in rows:
        for name in ("coarse", "prediction", "target"):
            _require_field(f"{name} of {row.title!r}", getattr(row, name), row.target.shape)
    errors = [row.prediction - row.target for row in rows]
    scale = Normalize(*limits("target", [row.target for row in rows]))
    limit = float(np.abs(limits("prediction - target", errors)).max())
    error_scale = Normalize(-limit, limit)
    widths, heights = zip(*(_panel_size(row.target.shape, 2.6, 2.2) for row in rows), strict=True)
    size = (max(4 * max(widths) + 1.0, MAPS_LEAST_WIDTH), sum(heights) + 0.2 * len(rows) + 1.2)
    figure = Figure(figsize=size, layout="compressed")
    grid = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    for axes_row, row, error in zip(grid, rows, errors, strict=True):
        for axes, field in zip(axes_row[:3], (row.coarse, row.prediction, row.target), strict=True):
            image = _show(axes, field, "viridis", scale)
        error_image = _show(axes_row[3], error, "RdBu_r", error_scale)
        axes_row[0].set_ylabel("\n".join([*textwrap.wrap(row.title, 24), "y (cells)"]))
        for axes in axes_row[1:]:
            axes.tick_params(labelleft=False)
    for axes, heading in zip(grid[0], ("coarse", "prediction", "target", "error"), strict=True):
        axes.set_title(heading, fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("x (cells)")
    bar = partial(figure.colorbar, location="bottom", extend="both", pad=0.02)
    bar(image, ax=grid[:, :3], label=f"SIF ({typeset(units)})", aspect=60, extendfrac=0.015)
    tick = float(f"{0.9 * limit:.1g}")  # three short labels: the bar is as narrow as its column
    error_bar = bar(error_image, ax=grid[:, 3], label=f"error\n({typeset(units)})", aspect=20, extendfrac=0.045)
    error_bar.set_ticks([-tick, 0, tick], labels=[f"−{tick:g}", "0", f"{tick:g}"])
    return figure


def lbp_panel(source: Field, channels: Mapping[str, NDArray[np.generic]], *, source_label: str) -> Figure:
    """The source field (y, x) and 1 to 11 of its LBP channels, each (y, x).

    A channel of zeros and ones (bit plane, one-hot) is drawn in two tones, with one key for all; one of at
    most 18 whole codes in as many unordered colours; any other on a continuous scale. `source_label` holds
    units ("NDVI (dimensionless)"). Raises ValueError for another number of channels or unlike shapes.
    """
    if not 1 <= len(channels) <= MAX_LBP_CHANNELS:
        raise ValueError(f"found {len(channels)} LBP channels; choose 1 to {MAX_LBP_CHANNELS} to show")
    for name, field in {"source": source, **channels}.items():
        _require_field(f"{name!r}", field, source.shape)
    count = len(channels) + 1
    columns = min(count, min((4, 3, 5), key=lambda n: -count % n))  # fewest empty places
    lines = math.ceil(count / columns)
    width, height = _panel_size(source.shape, 2.4, 2.2)
    size = (columns * (width + 0.6) + 0.5, lines * (height + 0.3) + 0.9)
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    image = _show(panels[0], source, "viridis", Normalize(*limits("source", [source])))
    figure.colorbar(image, ax=panels[0], label=source_label, extend="both", pad=0.03)
    for axes, (name, channel) in zip(panels[1:], channels.items(), strict=False):
        _draw_channel(figure, axes, name, channel.astype(float))
    for i, (axes, name) in enumerate(zip(panels, ["source", *channels], strict=False)):
        left, bottom = i % columns == 0, i + columns >= count
        axes.set_title(name, fontsize="medium")
        axes.tick_params(labelleft=left, labelbottom=bottom)
        axes.set(xlabel="x (cells)" if bottom else "", ylabel="y (cells)" if left else "")
    for axes in panels[count:]:
        axes.remove()
    tones = {"0": "white", "1": BLUE} if any(map(_is_binary, channels.values())) else {}
    _key(figure, tones | {"no value": MISSING})
    return figure


def correlation_matrix(names: Sequence[str], matrix: Field, *, title: str) -> Figure:
    """Heat map of correlation coefficients, numbers in the cells; `matrix` is (names, names) in -1..1.

    NaN (a constant variable) stays light grey. The figure grows with the number of names and the numbers keep
    their size. Raises ValueError for another shape or a value beyond +-1.
    """
    count = len(names)
    if count == 0 or matrix.shape != (count, count):
        raise ValueError(f"matrix has shape {matrix.shape} for {count} names; pass one row and column a name")
    if (np.abs(matrix) > 1 + 1e-6).any():
        raise ValueError(f"matrix reaches {np.nanmax(np.abs(matrix)):.4g}; pass correlations, within -1..1")
    figure = Figure(figsize=(0.4 * count + 2.6, 0.4 * count + 1.7), layout="compressed")
    axes = figure.add_subplot()
    image = _show(axes, matrix, "RdBu_r", Normalize(-1, 1))
    colours = np.asarray(image.to_rgba(matrix))[..., :3]
    luminance = colours**2.2 @ np.array([0.2126, 0.7152, 0.0722])
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            # Up to a relative luminance of 0.25 white text has a contrast of at least 3.5 (WCAG 2.1), beyond
            # it black has 6. Adding 0.0 makes of -0.0 a plain 0.
            colour = "black" if luminance[i, j] > 0.25 else "white"
            number = f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")
            axes.text(j, i, number, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, label="correlation (dimensionless)", pad=0.02, aspect=30)
    return figure


def split_map(parts: NDArray[np.int8], *, names: Mapping[int, str], title: str) -> Figure:
    """Where train, validation, test and guard lie: `parts` (y, x) holds codes, `names` what they mean.

    The key gives each part's share of the cells. Raises ValueError for a code without a name, more than six
    names besides those four, or parts not 2-D.
    """
    _require_field("parts", parts, parts.shape)
    unnamed = sorted(set(np.unique(parts).tolist()) - set(names))
    others = [name for name in names.values() if name not in _PARTS]
    if unnamed:
        raise ValueError(f"parts holds codes {unnamed}, names only {sorted(names)}; name every code")
    if len(others) > len(_OTHER_PARTS):
        raise ValueError(f"names holds {others}; give at most 6 besides train, validation, test and guard")
    colours = _PARTS | dict(zip(others, _OTHER_PARTS, strict=False))
    codes = sorted(names)
    width, height = _panel_size(parts.shape, 6.0, 5.0)
    figure = Figure(figsize=(max(width, 4.4) + 0.8, height + 1.3), layout="compressed")
    axes = figure.add_subplot(xlabel="x (cells)", ylabel="y (cells)")
    axes.set_title(title, fontsize="medium")
    palette = ListedColormap([colours[names[code]] for code in codes])
    _show(axes, np.searchsorted(codes, parts), palette, Normalize(-0.5, len(codes) - 0.5))
    _key(figure, {f"{names[c]} ({np.mean(parts == c):.0%})": colours[names[c]] for c in codes})
    return figure


def _needs_log_scale(losses: Sequence[float]) -> bool:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return bool(finite) and max(finite) > LOG_SCALE_RANGE * min(finite) > 0


def _draw_channel(figure: Figure, axes: Axes, name: str, channel: Field) -> None:
    codes = np.unique(channel[np.isfinite(channel)])
    if _is_binary(channel):
        _show(axes, channel, ListedColormap(["white", BLUE]), Normalize(0, 1))
    elif codes.size <= len(_CODE_COLOURS) and (codes % 1 == 0).all():
        ranks = np.where(np.isfinite(channel), np.searchsorted(codes, channel), np.nan)
        palette = ListedColormap(_CODE_COLOURS[: codes.size])
        image = _show(axes, ranks, palette, Normalize(-0.5, codes.size - 0.5))
        step = math.ceil(codes.size / 6)
        bar = figure.colorbar(image, ax=axes, label="code (category)", pad=0.03)
        bar.set_ticks(range(0, codes.size, step), labels=[f"{code:.0f}" for code in codes[::step]])
    else:
        image = _show(axes, channel, "cividis", Normalize(*limits(name, [channel])))
        figure.colorbar(image, ax=axes, label="value (dimensionless)", extend="both", pad=0.03)


def _is_binary(channel: NDArray[np.generic]) -> bool:
    values = channel.astype(float)
    return bool(np.isin(values[np.isfinite(values)], (0, 1)).all())


def _key(figure: Figure, colours: Mapping[str, str]) -> None:
    patches = [Patch(facecolor=colour, edgecolor="0.5", label=label) for label, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)


def _show(axes: Axes, field: NDArray[np.generic], cmap: str | Colormap, scale: Normalize) -> AxesImage:
    palette = colormaps.get_cmap(cmap).with_extremes(bad=MISSING)
    return axes.imshow(field, cmap=palette, norm=scale, interpolation="nearest")


def _require_field(name: str, field: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if field.ndim != 2 or field.size == 0 or field.shape != shape:
        raise ValueError(f"{name} has shape {field.shape}; pass non-empty (y, x) fields of one shape")


def limits(name: str, fields: Sequence[Field]) -> tuple[float, float]:
    """Percentiles 2 and 98 of all finite values, or about the one value there is; ValueError where there is none."""
    values = np.concatenate([field[np.isfinite(field)] for field in fields])
    if values.size == 0:
        raise ValueError(f"{name} has no finite value; check the valid mask")
    return _widened(*np.percentile(values, (2, 98)).tolist())


def _widened(low: float, high: float) -> tuple[float, float]:
    """A scale has some length also where all values are equal."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _panel_size(shape: tuple[int, ...], widest: float, tallest: float) -> tuple[float, float]:
    """Width and height (inches) of a (y, x) panel with square cells that fits into `widest` by `tallest`."""
    width = min(widest, tallest * shape[1] / shape[0])
    return width, width * shape[0] / shape[1]


def typeset(units: str) -> str:
    """Turn the exponents of CF units ("m-2") into superscripts."""
    return re.sub(r"(?<=[A-Za-z])(-?\d+)\b", r"$^{\1}$", units)
