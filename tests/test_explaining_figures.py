"""What a reader of an explanation's pictures relies on: bars, cells, colours and crosses are those that were passed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from sifscale import explaining_figures as pictures
from sifscale import figures
from sifscale.explaining_figures import Bar

UNITS = "mW m-2 sr-1 nm-1"
GROUPS = {"coarse": Bar(0.01, 0.002, "coarse"), "indices": Bar(0.05, 0.01, "indices")}
CHANNELS = {
    "coarse": Bar(0.01, 0.002, "coarse"), "ndvi": Bar(-0.001, math.nan, "indices"), "evi": Bar(0.04, 0.0, "indices"),
}  # fmt: skip


def test_bars_are_sorted_coloured_by_group_and_have_their_error(tmp_path: Path) -> None:
    figure = pictures.bars({"groups": GROUPS, "channels": CHANNELS}, label=f"increase ({UNITS})")
    above, below = figure.axes
    assert [axes.get_title(loc="left") for axes in (above, below)] == ["groups", "channels"]
    assert [label.get_text() for label in below.get_yticklabels()] == ["ndvi", "coarse", "evi"], "from below"
    bars = [patch for patch in below.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [-0.001, 0.01, 0.04]
    colours = [to_rgb(bar.get_facecolor()) for bar in bars]
    assert colours[0] == colours[2] != colours[1]
    ends = [line.get_segments()[0][:, 0].tolist() for line in below.collections]  # a NaN has no line
    np.testing.assert_allclose(ends, [[0.008, 0.012], [0.04, 0.04]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["coarse", "indices"]
    assert "$^{-2}$" in below.get_xlabel()
    figures.save(figure, tmp_path / "bars.png")


def test_cells_of_a_heat_map_hold_their_numbers(tmp_path: Path) -> None:
    values = np.array([[0.1, -0.02, np.nan], [0.0004, 0.0, 0.05]])
    figure = pictures.heat_map(["a", "b"], ["corn", "water", "ice"], values, label=f"increase ({UNITS})")
    axes = figure.axes[0]
    texts = {tuple(reversed(text.get_position())): text for text in axes.texts}
    assert {place: text.get_text() for place, text in texts.items()} == {
        (0, 0): "0.100", (0, 1): "−0.020", (1, 0): "0.000", (1, 1): "0.000", (1, 2): "0.050",
    }  # fmt: skip
    assert texts[0, 0].get_color() == "white" and texts[1, 1].get_color() == "black"
    assert axes.images[0].get_clim() == (0, 0.1)
    figures.save(figure, tmp_path / "map.png")
    flat = pictures.heat_map(["a"], ["corn"], np.array([[-1.0]]), label="x")
    assert flat.axes[0].images[0].get_clim() == (0, 1) and flat.axes[0].texts[0].get_text() == "−1.000"


def test_attributions_lie_below_their_predictors_on_one_scale_with_a_cross_at_the_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    predictors = {name: rng.normal(size=(6, 8)) for name in ("ndvi", "coarse")}
    predictors["ndvi"][0, 0] = np.nan
    added = {name: rng.normal(size=(6, 8)) for name in ("ndvi", "coarse")}
    figure = pictures.attribution_maps(predictors, added, (2, 5), units=UNITS)
    panels = figure.axes[:4]
    for axes, field in zip(panels, [*predictors.values(), *added.values()], strict=True):
        np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), np.nan), field)
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] == [(5, 2)]
    limit = max(np.abs(field).max() for field in added.values())
    assert panels[2].images[0].get_clim() == panels[3].images[0].get_clim() == (-limit, limit)
    figures.save(figure, tmp_path / "maps.png")
    nothing = {"ndvi": np.zeros((2, 2))}
    drawn = pictures.attribution_maps({"ndvi": np.full((2, 2), np.nan)}, nothing, (0, 0), units="1")
    figures.save(drawn, tmp_path / "nothing.png")
    assert drawn.axes[1].images[0].get_clim() == (-1, 1)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one bar each, found \[0\]"):
        pictures.bars({"groups": {}}, label="x")
    with pytest.raises(ValueError, match="colours for 5 groups, found 6"):
        pictures.bars({"groups": {str(i): Bar(1.0, 0.0, str(i)) for i in range(6)}}, label="x")
    for values in (np.zeros((1, 2)), np.full((1, 1), np.nan)):
        with pytest.raises(ValueError, match="needs as many values, one of them finite"):
            pictures.heat_map(["a"], ["b"], values, label="x")
    for added in ({}, {"a": np.zeros((2, 3))}, {"b": np.zeros((2, 2))}):
        with pytest.raises(ValueError, match="need the predictors of the same channels"):
            pictures.attribution_maps({"a": np.zeros((2, 2))}, added, (0, 0), units="1")
