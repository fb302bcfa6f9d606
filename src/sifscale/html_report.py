"""One self-contained HTML page: what is put on it, and the template (html_report.html) that lays it out."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from sifscale.comparison_figures import svg, webp


@dataclass(frozen=True)
class Chart:
    """A chart for a light and a dark page, as data URIs, with what it shows in words."""

    light: str
    dark: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A run's own picture as data URI."""

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class TableRow:
    """Cells as text, the first being the row's name; style, and marks by cell: classes of the page, or empty."""

    cells: Sequence[str]
    style: str = ""
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Grid:
    """A table that sorts by column; ``text``: of words rather than of numbers."""

    name: str
    head: Sequence[str]
    rows: Sequence[TableRow]
    caption: str = ""
    text: bool = False


@dataclass(frozen=True)
class Part:
    """A chapter: texts, then charts, tables and pictures."""

    heading: str
    texts: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()
    small: bool = False  # pictures that need no width


@dataclass(frozen=True)
class PageSection:
    """Everything on runs that were tested on the same ground."""

    number: int
    ground: str
    verdict: Sequence[str]
    parts: Sequence[Part] = field(default_factory=tuple)


def page(title: str, subtitle: str, sections: Sequence[PageSection], origin: str) -> str:
    """The page as text; everything but the template is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("sifscale").joinpath("html_report.html").read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections, origin=origin)


def chart(draw: Callable[[], Figure], alt: str, caption: str) -> Chart:
    """A figure drawn once for each theme."""
    light, dark = (_uri("image/svg+xml", svg(draw, theme)) for theme in ("light", "dark"))
    return Chart(light, dark, alt, caption)


def picture(png: bytes, alt: str, caption: str) -> Picture:
    """A run's PNG, made smaller."""
    return Picture(_uri("image/webp", webp(png)), alt, caption)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
