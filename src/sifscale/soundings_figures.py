"""Pictures of a map's check with soundings: map against soundings, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sifscale.figures import BLUE, MISSING, ORANGE, RED, typeset

MANY = 2000  # soundings from which on points would hide each other
Values = NDArray[np.float64]


def agreement(
    sounding: Values, predictions: Mapping[str, Values], scores: Mapping[str, Mapping[str, float]], *, units: str
) -> Figure:
    """Each prediction (n,) against soundings (n,), a panel each on one scale, with the 1:1 line and both regressions.

    Points, or hexagon counts from MANY on; NaN is left out. scores[prediction]: as ``soundings_scores.statistics``
    names them. The bar is the error of one sounding, +-1 sigma. Raises ValueError for no prediction or no finite pair.
    """
    pairs = {name: np.isfinite(sounding) & np.isfinite(values) for name, values in predictions.items()}
    if not any(finite.any() for finite in pairs.values()):
        raise ValueError("no finite pair of sounding and map to draw; match some first")
    shown = np.concatenate([np.r_[sounding[at], predictions[name][at]] for name, at in pairs.items()])
    margin = 0.04 * (np.ptp(shown) or 1.0)
    ends = np.array([shown.min() - margin, shown.max() + margin])
    figure = Figure(figsize=(4.6 * len(predictions) + 0.4, 4.6), layout="constrained")
    panels = figure.subplots(1, len(predictions), squeeze=False, sharey=True)[0]
    for axes, (name, values) in zip(panels, predictions.items(), strict=True):
        axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"soundings ({typeset(units)})")
        axes.set_ylabel(f"{name} ({typeset(units)})")
        _cloud(figure, axes, sounding[pairs[name]], values[pairs[name]], ends)
        _lines(axes, scores[name], ends)
    return figure


def _cloud(figure: Figure, axes: Axes, x: Values, y: Values, ends: Values) -> None:
    if len(x) < MANY:
        axes.plot(x, y, ".", color=BLUE, ms=4, alpha=0.5, mew=0)
        return
    hexagons = axes.hexbin(x, y, gridsize=(50, 29), extent=(*ends, *ends), mincnt=1, linewidths=0.2)
    hexagons.set_cmap("viridis")
    hexagons.set_norm(LogNorm(1, max(10.0, float(np.max(np.asarray(hexagons.get_array()))))))
    figure.colorbar(hexagons, ax=axes, label="soundings per hexagon (count)", shrink=0.8)


def _lines(axes: Axes, scores: Mapping[str, float], ends: Values) -> None:
    axes.plot(ends, ends, color="black", lw=1, ls="--", label="1:1")
    for kind, colour, label in (("_ols", ORANGE, "least squares"), ("", RED, "error of soundings out")):
        slope, intercept = scores[f"slope{kind}"], scores[f"intercept{kind}"]
        if np.isfinite(slope):
            equation = f"{slope:.2f} x {'−' if intercept < 0 else '+'} {abs(intercept):.2f}"
            axes.plot(ends, intercept + slope * ends, color=colour, lw=1.5, label=f"{label}: {equation}")
    names = {"correlation": "r", "bias": "bias", "rmse": "RMSE", "sounding_error": "error of soundings"}
    lines = [f"{label} = {scores[name]:.3f}".replace("-", "−") for name, label in names.items()]
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    text = "\n".join([f"n = {scores['n']:,.0f}", *lines])
    axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize="small", bbox=box)
    place = ends[0] + 0.88 * np.ptp(ends), ends[0] + 0.3 * np.ptp(ends)
    axes.errorbar(*place, xerr=scores["sounding_error"], color="0.35", capsize=2, lw=1)
    axes.legend(loc="lower right", fontsize="small", edgecolor="none")


def differences(
    corners: Values, sounding: Values, predicted: Values, *, units: str, axis_units: str, aspect: float = 1.0
) -> Figure:
    """Footprints where they lie: soundings, the map's means over them, and the difference.

    corners: (n, 4, 2), x and y in ``axis_units``; values (n,); aspect: height of a unit of y beside the width of one of
    x. The first two panels share a scale, percentiles 2 to 98 of both; that of the difference is symmetric. Raises
    ValueError for no footprint.
    """
    if not len(corners):
        raise ValueError("no footprint to draw; match some first")
    difference = predicted - sounding
    low, high = np.percentile(np.r_[sounding, predicted], (2, 98))
    if low == high:
        low, high = low - 0.5, high + 0.5
    limit = float(np.percentile(np.abs(difference), 98)) or 0.5
    span = np.ptp(corners.reshape(-1, 2), axis=0)
    ratio = float(np.clip(aspect * span[1] / span[0] if span[0] else 1.0, 0.4, 2.0))
    figure = Figure(figsize=(11, 3.3 * ratio + 1.7), layout="compressed")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    scale = Normalize(low, high)
    shown: list[tuple[str, Values, str, Normalize]] = [
        ("soundings", sounding, "viridis", scale),
        ("map over footprints", predicted, "viridis", scale),
        ("map − soundings", difference, "RdBu_r", Normalize(-limit, limit)),
    ]
    for axes, (title, values, palette, norm) in zip(panels, shown, strict=True):
        footprints = _footprints(axes, corners, values, palette, norm)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(f"x ({axis_units})")
        axes.set_aspect(aspect)
        if values is not sounding:  # its colours are those of the map
            below = panels[:2] if values is predicted else panels[2:]
            bar = figure.colorbar(
                footprints, ax=below, location="bottom", extend="both", pad=0.02, aspect=22 * len(below)
            )
            bar.set_label(f"{'SIF' if values is predicted else 'difference'} ({typeset(units)})")
    panels[0].set_ylabel(f"y ({axis_units})")
    return figure


def _footprints(
    axes: Axes, corners: Values, values: Values, palette: str | Colormap, scale: Normalize
) -> PolyCollection:
    footprints = PolyCollection(list(corners), array=values, cmap=palette, norm=scale)
    footprints.set_edgecolor("face")
    footprints.set_linewidth(0.8)  # a footprint stays visible where the track is long
    axes.add_collection(footprints)
    axes.autoscale_view()
    axes.set_facecolor(MISSING)
    axes.ticklabel_format(useOffset=False)
    axes.locator_params(axis="x", nbins=4)
    return footprints
