"""A self-contained page that lays the coarse field beside the map, with a divider that moves (map_page.html)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sifscale.borders import Line
from sifscale.map_figures import SIF_COLOURS, Field
from sifscale.map_frame import Frame

_WIDTH = 1000.0  # of the page's drawing of borders
_STEP = 0.5  # to which its points are rounded
_STOPS = 16  # of the legend's gradient
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def page(
    title: str,
    composites: Mapping[str, Mapping[str, Field]],
    frame: Frame,
    scale: tuple[float, float],
    *,
    label: str,
    provenance: Mapping[str, str],
) -> str:
    """The page as text.

    composites: by date, the fields (y, x) by name, at least two, the first of which is shown on the left and the second
    on the right; all have the same names and cover the area of the frame. scale: values at the ends of the colour
    scale; label: of the scale, with units. Images hold one pixel a cell, so that nothing is smoothed. Raises ValueError
    for unlike or fewer names.
    """
    names = {tuple(layers) for layers in composites.values()}
    if len(names) != 1 or len(layers := next(iter(names))) < 2:
        raise ValueError(f"a page needs composites with the same two fields or more, found {sorted(names)}")
    low, high = scale
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("sifscale").joinpath("map_page.html").read_text(encoding="utf-8"))
    width = frame.bounds[2] - frame.bounds[0]
    ticks = [float(tick) for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]
    return template.render(
        title=title,
        ratio=frame.height_to_width,
        layers=layers,
        composites=[
            {"label": label, "layers": {name: _image(field, scale) for name, field in fields.items()}}
            for label, fields in composites.items()
        ],
        outlines=_path(frame.borders.outlines, frame),
        states=_path(frame.borders.states, frame),
        bar=frame.scale_bar and {"percent": 100 * frame.scale_bar[0] / width, "label": frame.scale_bar[1]},
        colours=[to_hex(colour) for colour in colormaps[SIF_COLOURS](np.linspace(0, 1, _STOPS))],
        ticks=[{"percent": 100 * (tick - low) / (high - low), "label": f"{tick:g}"} for tick in ticks],
        legend=superscripted(label),
        provenance=provenance,
    )


def superscripted(units: str) -> str:
    """Exponents of CF units ("m-2") as letters: "m⁻²"."""
    return re.sub(r"(?<=[A-Za-z])-?\d+\b", lambda found: found[0].translate(_SUPERSCRIPTS), units)


def _image(field: Field, scale: tuple[float, float]) -> str:
    """A lossless WebP as data URI, transparent where there is no value."""
    colours = colormaps[SIF_COLOURS](Normalize(*scale)(np.ma.masked_invalid(field)), bytes=True)
    colours[~np.isfinite(field)] = 0
    buffer = BytesIO()
    Image.fromarray(colours).save(buffer, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _path(lines: Sequence[Line], frame: Frame) -> str:
    """Lines as the path of an SVG, rounded, without points that fall on the one before."""
    west, _, east, north = frame.bounds
    scale = _WIDTH / (east - west) / _STEP
    parts = []
    for line in lines:
        steps = np.rint((line - (west, north)) * (scale, -scale * frame.aspect)).astype(int)
        points = steps[np.concatenate([[True], np.diff(steps, axis=0).any(axis=1)])] * _STEP
        if len(points) > 1:
            parts.append("M" + "L".join(f"{x:g},{y:g}" for x, y in points))
    return "".join(parts)
