"""The charts of a comparison, for a light and for a dark page; as in `figures`, each function returns a Figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sifscale.effects import Effect
from sifscale.figures import typeset

INK = {"light": "#1f2328", "dark": "#e6e9ee"}  # text and lines
COLOURS = {  # Okabe & Ito (2008) without black and yellow, and the same hues for a dark page
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    "dark": ("#5AB4F0", "#FF8A4A", "#2FCFA0", "#E79CC6", "#F2BE4A", "#A9B4FF"),
}
HUES = len(COLOURS["light"])
MARK, VALUE = "C1", "C0"
MARKERS = "osD^vP"
PICTURE_WIDTH_PX, PICTURE_QUALITY = 1100, 80
WIDTH_INCHES, ROW_INCHES = 8.4, 0.34
LABEL_LETTERS = 60

Point = tuple[str, float, float, float]  # label, value, low, high
Curve = tuple[Sequence[int], Sequence[float], Sequence[float], Sequence[float]]  # epochs, mean, lowest, highest


def svg(draw: Callable[[], Figure], theme: str) -> bytes:
    """A chart as SVG without background, its letters as paths, so that it needs no font; theme: of ``INK``."""
    buffer = BytesIO()
    with _theme(theme):
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@contextmanager
def _theme(theme: str) -> Iterator[None]:
    ink = INK[theme]
    style: dict[Any, Any] = {"text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink}
    style |= {"xtick.color": ink, "ytick.color": ink, "axes.prop_cycle": cycler(color=COLOURS[theme])}
    style |= {"svg.fonttype": "path", "svg.hashsalt": theme}  # the same chart is the same file
    with matplotlib.rc_context(style):
        yield


def webp(picture: bytes) -> bytes:
    """A run's PNG as WebP of moderate size."""
    buffer = BytesIO()
    with Image.open(BytesIO(picture)) as image:
        wide = image.convert("RGB")
        if wide.width > PICTURE_WIDTH_PX:
            wide = wide.resize((PICTURE_WIDTH_PX, round(wide.height * PICTURE_WIDTH_PX / wide.width)))
        wide.save(buffer, "WEBP", quality=PICTURE_QUALITY)
    return buffer.getvalue()


def forest(points: Sequence[Point], xlabel: str, mark: float | None = None, mark_label: str = "") -> Figure:
    """Dots with whiskers, one row a label, the first on top; a dashed line at ``mark``."""
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * len(points) + 1.0), layout="constrained")
    axes = figure.add_subplot(xlabel=typeset(xlabel))
    _whiskers(axes, points, range(len(points)))
    if mark is not None:
        axes.axvline(mark, color=MARK, lw=1, ls="--", label=mark_label or None)
        if mark_label:
            figure.legend(loc="outside lower right", frameon=False, fontsize="small")
    axes.set_yticks(range(len(points)), [_label(label) for label, *_ in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    _clean(axes)
    return figure


def effects(found: Sequence[Effect], xlabel: str) -> Figure:
    """Difference of each level to the first of its key, keys in the order given; levels without one are left out."""
    points: list[Point] = []
    places: list[int] = []
    heads: list[tuple[str, int]] = []  # a key has a line of its own above its levels
    line = 0
    for effect in found:
        shown = [(level.value, level.difference) for level in effect.levels if level.difference]
        if shown:
            heads.append((effect.key, line))
            points.append((f"{effect.levels[0].value} (the others less this)", 0.0, math.nan, math.nan))
            points += [(value, d.difference, d.low, d.high) for value, d in shown]
            places += range(line + 1, line + 2 + len(shown))
            line += 2 + len(shown)
    figure = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * line + 0.9), layout="constrained")
    axes = figure.add_subplot(xlabel=typeset(xlabel))
    _whiskers(axes, points, places)
    axes.axvline(0, color=MARK, lw=1, ls="--")
    labels = dict(zip(places, (point[0] for point in points), strict=True)) | {at: key for key, at in heads}
    axes.set_yticks(list(labels), [_label(text) for text in labels.values()])
    for text, at in zip(axes.get_yticklabels(), labels, strict=True):
        text.set_fontweight("normal" if at in places else "bold")
    axes.set_ylim(line - 0.5, -0.5)
    _clean(axes)
    return figure


def curves(by_arm: Mapping[str, Curve], ylabel: str, *, log_scale: bool = False) -> Figure:
    """Mean of a metric by epoch, one line an arm, over the range of its seeds and folds."""
    figure = Figure(figsize=(WIDTH_INCHES, 3.6 + 0.2 * len(by_arm)), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel=typeset(ylabel), yscale="log" if log_scale else "linear")
    for number, (arm, (epochs, middle, low, high)) in enumerate(by_arm.items()):
        style: dict[str, Any] = {"color": f"C{number % HUES}", "ls": ("-", "--", ":")[number // HUES % 3]}
        marker = "." if len(epochs) < 15 else None
        axes.plot(epochs, middle, label=_label(arm), marker=marker, lw=1.6, **style)
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize="small")
    return figure


def by_group(groups: Sequence[tuple[str, int]], rmse: Mapping[str, Sequence[float]], ylabel: str) -> Figure:
    """RMSE by group, given with its number of pixels, one mark an arm; NaN has no mark."""
    rows = math.ceil(len(rmse) / 2)
    width = max(WIDTH_INCHES, 1.1 * len(groups))
    figure = Figure(figsize=(width, 3.2 + 0.2 * rows), layout="constrained")
    axes = figure.add_subplot(ylabel=typeset(ylabel))
    steps = np.linspace(-0.3, 0.3, len(rmse)) if len(rmse) > 1 else [0.0]
    for number, ((arm, values), step) in enumerate(zip(rmse.items(), steps, strict=True)):
        style: dict[str, Any] = {"color": f"C{number % HUES}", "marker": MARKERS[number // HUES % len(MARKERS)]}
        axes.plot(np.arange(len(groups)) + step, values, ls="none", ms=5, label=_label(arm), **style)
    labels = ["\n".join([*textwrap.wrap(group, 15), f"n = {n:,}"]) for group, n in groups]
    axes.set_xticks(range(len(groups)), labels, fontsize="small")
    for between in range(len(groups) - 1):
        axes.axvline(between + 0.5, color="0.5", lw=0.5, alpha=0.5)
    axes.grid(axis="y", color="0.5", alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize="small")
    return figure


def _whiskers(axes: Axes, points: Sequence[Point], places: Sequence[float] | range) -> None:
    for (_, value, low, high), place in zip(points, places, strict=True):
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [place, place], color=VALUE, lw=2, solid_capstyle="butt")
        axes.plot([value], [place], "o", color=VALUE, ms=6)


def _label(text: str) -> str:
    """As it is, neither mathematics ($) nor hidden (_ at the head of a legend's line), and not too long."""
    short = text if len(text) <= LABEL_LETTERS else f"{text[: LABEL_LETTERS - 1]}…"
    return short.replace("$", r"\$").removeprefix("_")


def _clean(axes: Axes) -> None:
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.5", alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
