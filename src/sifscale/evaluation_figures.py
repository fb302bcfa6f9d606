"""The pictures of an evaluation: power spectra, errors by kinds of ground, and what error bars are worth.

As in `figures`, each function takes plain numbers and strings and returns a Figure built without pyplot.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from sifscale.figures import BLUE, GREEN, ORANGE, PINK, RED, typeset
from sifscale.spectra import NOISE_TO_SIGNAL

# Okabe & Ito (2008) and three of Paul Tol's "muted" scheme, told apart by the colour-blind too; black is the target.
_COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, "#56B4E9", "#882255", "#999933", "#332288", "#F0E442")
_BAR_INCHES, _LEAST_GROUP_INCHES, _PANEL_INCHES = 0.17, 1.05, 2.3
_LEAST_WIDTH_INCHES, _LEGEND_INCHES = 5.0, 1.4
_BARS, _WIDEST_BAR = 0.8, 0.3  # shares of a group's width: what its bars take, and one of them at most
_POWER_SHOWN = 1e-3  # down to this share of the target's least
_LABEL_LETTERS = 15  # in a line: what a group's least width holds

Values = NDArray[np.floating[Any]]
Spectrum = Mapping[str, Values]
Scores = Mapping[str, float]
Groups = Mapping[str, Mapping[str, Scores]]
Kinds = Mapping[str, Groups]


def spectra(
    by_name: Mapping[str, Spectrum], *, pixel_km: float | None, units: str, target: str = "target"
) -> Figure:
    """Power of the target and of each prediction (lines) and of its error (dashed) against wavelength, log-log.

    by_name: prediction name -> what :meth:`sifscale.structure.Structure.spectra` gives: "wavenumber" (cycles per
    px), "prediction", "target", "error", each (rings,), power spectral density in ``units`` squared times px^2.
    pixel_km: side of a pixel, for an axis in km, else it is in px. A dotted line is half of the target's power: a
    prediction resolves the waves to the left of where its error comes up to it. Power that is 0, NaN or below a
    thousandth of the target's least is not drawn. target: its name. Raises ValueError for no or more than ten
    predictions, for targets that differ, and where no target has power.
    """
    colours = _colours(by_name)
    first = next(iter(by_name.values()))
    for name, found in by_name.items():
        if not all(_alike(found[key], first[key]) for key in ("wavenumber", "target")):
            raise ValueError(f"{name!r} has another target than the first: score all predictions on the same pixels")
    if not (first["target"] > 0).any():
        raise ValueError("the target has no power at any wavelength: its test part must hold a tile of the spectra")
    wavelength = (1.0 if pixel_km is None else pixel_km) / first["wavenumber"]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = _power_axes(figure, wavelength, pixel_km=pixel_km, units=units)
    _draw_power(axes, wavelength, first["target"], label=target, color="black", lw=2.2)
    half = NOISE_TO_SIGNAL * first["target"]
    _draw_power(axes, wavelength, half, label=f"half of the {target}", color="black", lw=1, ls=":")
    for name, found in by_name.items():
        _draw_power(axes, wavelength, found["prediction"], label=name, color=colours[name], lw=1.5)
        _draw_power(axes, wavelength, found["error"], color=colours[name], lw=1.5, ls="--")
    axes.plot([], [], color="0.35", lw=1.5, ls="--", label="error of each")
    least = _POWER_SHOWN * first["target"][first["target"] > 0].min()
    axes.set_ylim(bottom=max(least, axes.get_ylim()[0]))  # a smooth prediction falls without end
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def power(wavenumber: Values, by_name: Mapping[str, Values], *, pixel_km: float | None, units: str) -> Figure:
    """Power of fields without a target to compare them with, (rings,) each; arguments and axes as in `spectra`.

    Raises ValueError for no or more than ten fields.
    """
    colours = _colours(by_name)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    wavelength = (1.0 if pixel_km is None else pixel_km) / wavenumber
    axes = _power_axes(figure, wavelength, pixel_km=pixel_km, units=units)
    for name, values in by_name.items():
        _draw_power(axes, wavelength, values, label=name, color=colours[name], lw=1.8)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _power_axes(figure: Figure, wavelength: Values, *, pixel_km: float | None, units: str) -> Axes:
    """Logarithmic axes for power spectral densities against wavelength, (rings,) in km, or px without ``pixel_km``."""
    axes = figure.add_subplot(xscale="log", yscale="log")
    axes.set_xlim(wavelength.max(), wavelength.min())  # long waves on the left, as spectra are read
    axes.set_xlabel(f"wavelength ({'px' if pixel_km is None else 'km'})")
    axes.set_ylabel(f"power spectral density\n(({typeset(units)})² px²)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def errors_by(kinds: Kinds, *, units: str) -> Figure:
    """RMSE by group as bars, one colour a prediction, one panel a kind of group, all on one scale.

    kinds[kind][group][prediction name]: scores with "rmse" (in ``units``), "bias" (not drawn) and "n", the number
    of pixels, which stands below the group's name. A prediction that a group lacks, or whose rmse is NaN, has no
    bar. Raises ValueError for no kind, a kind without a group, none or more than ten predictions, and predictions
    of one group that were scored on unlike numbers of pixels.
    """
    if not kinds or not all(kinds.values()):
        counts = {kind: len(groups) for kind, groups in kinds.items()}
        raise ValueError(f"errors need kinds with at least one group each, found {counts}: leave out what is empty")
    colours = _colours([name for groups in kinds.values() for by_name in groups.values() for name in by_name])
    most = max(map(len, kinds.values()))
    width = max(most * max(_BAR_INCHES * len(colours) / _BARS, _LEAST_GROUP_INCHES), _LEAST_WIDTH_INCHES)
    figure = Figure(figsize=(width + 0.9, _PANEL_INCHES * len(kinds) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(kinds), most)
    axes: Axes | None = None
    for row, (kind, groups) in enumerate(kinds.items()):
        axes = figure.add_subplot(grid[row, : len(groups)], sharey=axes)  # groups of one width in all panels
        _draw_bars(axes, groups, colours)
        axes.set_title(kind, fontsize="medium", loc="left")
        axes.set_ylabel(f"RMSE\n({typeset(units)})")
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    columns = int(width / _LEGEND_INCHES)
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
    return figure


def spread_skill(bins: tuple[Values, Values, Values], *, level: float, coverage: float, units: str) -> Figure:
    """Error of predictions against their standard error, pixels of like standard error together; 1:1 is right.

    bins: number of pixels, root mean square standard error and root mean square error, each (bins,), both in ``units``.
    The area of a point is in proportion to its pixels. Below the line a prediction is less sure of itself than it could
    be, above it too sure. level, coverage (0..1): of the intervals, for the title. Raises ValueError without bins.
    """
    count, spread, skill = bins
    if not count.size:
        raise ValueError("a spread-skill diagram needs one bin of pixels or more, found none")
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    most = 1.08 * float(max(spread.max(), skill.max())) or 1.0
    axes.plot([0, most], [0, most], color="0.6", lw=1.2, ls="--", label="1:1")
    axes.plot(spread, skill, color=BLUE, lw=1.5)
    axes.scatter(spread, skill, s=120 * count / count.max(), color=BLUE)
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    axes.set_aspect("equal")
    axes.set_xlabel(f"standard error ({typeset(units)})")
    axes.set_ylabel(f"RMSE ({typeset(units)})")
    axes.set_title(f"{100 * level:g} % intervals cover {100 * coverage:.1f} %", fontsize="medium", loc="left")
    axes.legend(loc="upper left", fontsize="small", frameon=False)
    axes.grid(color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_bars(axes: Axes, groups: Groups, colours: Mapping[str, str]) -> None:
    width = min(_BARS / len(colours), _WIDEST_BAR)
    labels = []
    for place, (group, by_name) in enumerate(groups.items()):
        counts = {round(found["n"]) for found in by_name.values()}
        if len(counts) > 1:
            raise ValueError(f"{group!r} was scored on {sorted(counts)} pixels: score all predictions on the same ones")
        labels.append("\n".join([*textwrap.wrap(group, _LABEL_LETTERS), f"n = {max(counts, default=0):,}"]))
        shown = [(name, by_name[name]["rmse"]) for name in colours if name in by_name]
        shown = [(name, rmse) for name, rmse in shown if math.isfinite(rmse)]
        for number, (name, rmse) in enumerate(shown):  # those there are stand together, about the group's middle
            axes.bar(place + (number - (len(shown) - 1) / 2) * width, rmse, width, color=colours[name])
    axes.set_xticks(range(len(groups)), labels, fontsize="small")
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_power(axes: Axes, wavelength: Values, power: Values, **style: Any) -> None:
    axes.plot(wavelength, np.where(power > 0, power, np.nan), **style)  # a logarithmic axis has no 0


def _alike(found: Values, expected: Values) -> bool:
    return found.shape == expected.shape and np.allclose(found, expected, rtol=1e-6, atol=0, equal_nan=True)


def _colours(names: Iterable[str]) -> dict[str, str]:
    """One colour a name, in the order in which the names come first; ValueError unless one to ten differ."""
    distinct = list(dict.fromkeys(names))
    if not 1 <= len(distinct) <= len(_COLOURS):
        raise ValueError(f"found {len(distinct)} predictions; choose 1 to {len(_COLOURS)} to show")
    return dict(zip(distinct, _COLOURS, strict=False))
