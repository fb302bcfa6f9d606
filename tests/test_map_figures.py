"""Figures of maps: which panels there are, that scales are shared, and that no text lies on another."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pyproj import CRS

from sifscale.figures import typeset
from sifscale.map_figures import Composite, composite_figure, season_frames
from sifscale.map_frame import Frame, frame_of

UNITS = "mW m-2 sr-1 nm-1"


@cache
def framed(shape: tuple[int, int]) -> Frame:
    """Fields in the north of Minnesota."""
    mapping = {"crs_wkt": CRS(5070).to_wkt(), "GeoTransform": "-60000.0 1000.0 0.0 2850000.0 0.0 -1000.0"}
    return frame_of(xr.Dataset({"sif": (("y", "x"), np.zeros(shape))}, coords={"spatial_ref": ((), 0, mapping)}))


def composite(shape: tuple[int, int], **more: Any) -> Composite:
    rng = np.random.default_rng(1)
    truth = 1 + rng.normal(size=shape)
    fine = truth + 0.1 * rng.normal(size=shape)
    coarse = fine[:: min(4, shape[0]), :: min(4, shape[1])]
    filled = np.zeros(shape, dtype=bool)
    filled[: shape[0] // 2] = True
    notes = "A long note " * 9
    whole = Composite("SIF, Here, 2019-05-09", coarse, fine, truth, fine - truth, np.abs(fine), filled, notes)
    return replace(whole, **more)


def drawn(shape: tuple[int, int] = (60, 80), **more: Any) -> Figure:
    return composite_figure(composite(shape, **more), framed(shape), quantity="SIF", units=UNITS)


def panels(figure: Figure) -> dict[str, Any]:
    """Axes with a map by their heading."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_five_fields_have_five_panels_and_three_scales() -> None:
    figure = drawn()
    found = panels(figure)
    assert list(found) == ["coarse", "map", "truth", "error", "uncertainty"]
    scales = {name: axes.images[0].norm for name, axes in found.items()}
    assert scales["coarse"] is scales["map"] is scales["truth"]
    shown = composite((60, 80))
    assert shown.truth is not None and shown.error is not None
    pooled = np.concatenate([shown.coarse.ravel(), shown.fine.ravel(), shown.truth.ravel()])
    assert (scales["map"].vmin, scales["map"].vmax) == pytest.approx(tuple(np.percentile(pooled, (2, 98))))
    assert scales["error"].vmin == -scales["error"].vmax and scales["uncertainty"].vmin == 0
    bars = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    names = ("SIF", "map − truth", "standard error")
    assert bars == [f"{name} ({typeset(UNITS)})" for name in names]
    np.testing.assert_array_equal(found["error"].images[0].get_array(), shown.error)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"truth": None, "error": None}, ["coarse", "map", "uncertainty"]),
        ({"truth": None, "error": None, "standard_error": None}, ["coarse", "map"]),
        ({"standard_error": None, "truth_name": "observed"}, ["coarse", "map", "observed", "error"]),
    ],
)
def test_what_is_not_known_has_no_panel(more: dict[str, Any], names: list[str]) -> None:
    assert list(panels(drawn(**more))) == names


TWO = {"truth": None, "error": None, "standard_error": None}


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((60, 80), {}), ((200, 30), {}), ((8, 200), {}), ((1, 1), {}),
        ((60, 80), {"standard_error": None}), ((200, 30), TWO), ((1, 50), TWO),
    ],
)  # fmt: skip
def test_no_text_lies_on_another_and_none_leaves_the_figure(shape: tuple[int, int], more: dict[str, Any]) -> None:
    figure = drawn(shape, **more)
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]  # matplotlib has no annotations there
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    shown = [text for text in texts if text.get_text().strip() and text.get_visible()]
    boxes = [text.get_window_extent() for text in shown]
    for one, other in combinations(range(len(boxes)), 2):
        assert not boxes[one].overlaps(boxes[other]), (shown[one].get_text(), shown[other].get_text())
    for text, box in zip(shown, boxes, strict=True):
        inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
        assert inside and box.y1 <= figure.bbox.y1, text.get_text()


def test_fields_of_one_value_and_with_gaps_are_drawn() -> None:
    flat = np.full((60, 80), 0.5)
    flat[:30] = np.nan
    figure = drawn(coarse=flat, fine=flat, truth=flat, error=flat * 0, standard_error=flat * 0)
    scale = panels(figure)["map"].images[0].norm
    assert scale.vmin < 0.5 < scale.vmax
    assert panels(figure)["uncertainty"].images[0].norm.vmax > 0


def test_a_map_without_any_value_is_refused() -> None:
    empty = np.full((4, 4), np.nan)
    with pytest.raises(ValueError, match="no finite value"):
        drawn((4, 4), coarse=empty, fine=empty, truth=None, error=None)


def test_filled_gaps_are_hatched_and_named() -> None:
    keys = [text.get_text() for text in drawn().legends[0].get_texts()]
    assert keys == ["no value", "not observed: gap filled"]
    found = drawn(filled=np.zeros((60, 80), dtype=bool))
    assert [text.get_text() for text in found.legends[0].get_texts()] == ["no value"]


def test_frames_of_a_season_differ_only_in_field_and_date() -> None:
    one, other = np.zeros((60, 80)), np.ones((60, 80))
    frames = season_frames(
        {"2019-05-09": one, "2019-05-25": other, "2019-06-10": one * np.nan}, framed((60, 80)), (0.0, 1.0),
        title="SIF, Here", label=f"SIF ({UNITS})",
    )  # fmt: skip
    first, second, third = (np.asarray(frame.convert("RGB")).astype(int) for frame in frames)
    middle = first.shape[0] // 2, first.shape[1] // 2
    assert np.abs(first[middle] - (68, 1, 84)).max() < 8, "the dark end of viridis"
    assert np.abs(second[middle] - (253, 231, 37)).max() < 8, "its bright end"
    assert np.abs(third[middle] - 217).max() < 8, "grey"
    assert (first[0, 0] == 255).all() and (first[-60:] == second[-60:]).all(), "one colour bar"
