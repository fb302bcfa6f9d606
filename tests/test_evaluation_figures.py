"""What a reader of the evaluation's pictures relies on: lines, bars, colours and counts are those that were passed."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from sifscale import evaluation_figures as pictures
from sifscale import figures
from sifscale.structure import Structure

UNITS = "mW m-2 sr-1 nm-1"
TARGET = np.random.default_rng(0).normal(size=(2, 48, 48))


def spectra_of(prediction: NDArray[np.float64], target: NDArray[np.float64] = TARGET) -> dict[str, NDArray[np.float64]]:
    seen = np.ones(target.shape, dtype=bool)
    return Structure.of(prediction, target, seen, seen, tile_px=16, data_range=1.0).spectra()


def lines(axes: Axes) -> list[Line2D]:
    """Those with data: the key has one of its own."""
    return [line for line in axes.lines if np.size(line.get_xdata())]


def key(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def scores(rmse: float, n: int = 1200) -> dict[str, float]:
    return {"rmse": rmse, "bias": 0.0, "n": float(n)}


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def colour(bar: Rectangle) -> tuple[float, float, float]:
    return to_rgb(bar.get_facecolor())


def test_the_spread_skill_diagram_shows_each_bin_beside_the_line_of_equality(tmp_path: Path) -> None:
    count, spread, skill = np.array([50.0, 200.0]), np.array([0.1, 0.3]), np.array([0.2, 0.25])
    figure = pictures.spread_skill((count, spread, skill), level=0.9, coverage=0.8934, units=UNITS)
    (axes,) = figure.axes
    equality, found = axes.lines
    np.testing.assert_array_equal(equality.get_xdata(), equality.get_ydata())
    np.testing.assert_array_equal(found.get_xydata(), np.stack([spread, skill], axis=1))
    (points,) = axes.collections
    assert isinstance(points, PathCollection)
    areas = np.asarray(points.get_sizes())
    assert areas[1] == 4 * areas[0]
    assert axes.get_title(loc="left") == "90 % intervals cover 89.3 %"
    figures.save(figure, tmp_path / "spread.png")
    with pytest.raises(ValueError, match="needs one bin of pixels or more, found none"):
        pictures.spread_skill((count[:0], spread[:0], skill[:0]), level=0.9, coverage=0.9, units=UNITS)


def test_the_spread_skill_diagram_of_perfect_predictions_is_a_point_at_the_origin() -> None:
    figure = pictures.spread_skill((np.ones(1), np.zeros(1), np.zeros(1)), level=0.5, coverage=1.0, units=UNITS)
    assert figure.axes[0].get_xlim() == (0, 1)


@pytest.mark.parametrize(("pixel_km", "longest", "label"), [(None, 16, "(px)"), (2.5, 40, "(km)")])
def test_spectra_show_the_target_once_and_each_prediction_with_its_error(
    pixel_km: float | None, longest: float, label: str, tmp_path: Path
) -> None:
    by_name = {"ridge": spectra_of(0.5 * TARGET), "U-Net": spectra_of(0.9 * TARGET)}
    figure = pictures.spectra(by_name, pixel_km=pixel_km, units=UNITS)
    (axes,) = figure.axes
    target, half, *others = lines(axes)
    power = by_name["ridge"]["target"]
    expected = [power, power / 2, *(found[name] for found in by_name.values() for name in ("prediction", "error"))]
    for line, values in zip([target, half, *others], expected, strict=True):
        np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), values)
    for solid, dashed in (others[:2], others[2:]):
        assert solid.get_color() == dashed.get_color()
        assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
    assert others[0].get_color() != others[2].get_color()
    assert key(figure) == ["target", "half of the target", "ridge", "U-Net", "error of each"]
    assert axes.get_xscale() == axes.get_yscale() == "log" and label in axes.get_xlabel()
    assert axes.get_xlim() == pytest.approx((longest, longest / 8)), "long waves are on the left"
    figures.save(figure, tmp_path / "spectra.png")


def test_spectra_without_power_are_left_out_and_do_not_rule_the_scale(tmp_path: Path) -> None:
    smooth = spectra_of(1e-9 * TARGET)
    with warnings.catch_warnings(action="error"):
        figure = pictures.spectra({"exact": spectra_of(TARGET), "smooth": smooth}, pixel_km=None, units=UNITS)
        figures.save(figure, tmp_path / "spectra.png")
    (axes,) = figure.axes
    error = lines(axes)[3]
    assert np.isnan(np.asarray(error.get_ydata(), dtype=float)).all()
    assert axes.get_ylim()[0] == pytest.approx(1e-3 * smooth["target"].min())


def test_fields_without_a_target_have_a_line_each() -> None:
    wavenumber, power = np.array([0.125, 0.25, 0.5]), np.array([3.0, 2.0, 0.0])
    figure = pictures.power(wavenumber, {"coarse": power, "map": 2 * power}, pixel_km=2.0, units="K")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.get_lines()] == ["coarse", "map"]
    np.testing.assert_array_equal(axes.get_lines()[1].get_xdata(), [16, 8, 4])
    np.testing.assert_array_equal(axes.get_lines()[1].get_ydata(), [6, 4, np.nan])
    assert axes.get_xlabel() == "wavelength (km)" and axes.get_xlim() == (16, 4)
    with pytest.raises(ValueError, match="0 predictions"):
        pictures.power(wavenumber, {}, pixel_km=None, units="K")


def test_spectra_that_cannot_be_compared_are_refused() -> None:
    found = spectra_of(0.5 * TARGET)
    refused = {
        "found 0 predictions": {},
        "found 11 predictions": {f"model {i}": found for i in range(11)},
        "'other' has another target": {"one": found, "other": spectra_of(TARGET, 2 * TARGET)},
        "no power at any wavelength": {"small": spectra_of(TARGET[:, :9], TARGET[:, :9])},
    }
    for message, by_name in refused.items():
        with pytest.raises(ValueError, match=message):
            pictures.spectra(by_name, pixel_km=None, units=UNITS)


def test_each_group_has_a_bar_of_each_prediction_and_its_count(tmp_path: Path) -> None:
    kinds = {
        "land cover": {
            "deciduous broadleaf forest": {"ridge": scores(0.2), "U-Net": scores(0.1)},
            "water": {"ridge": scores(0.4, 7), "U-Net": scores(0.3, 7)},
        },
        "SIF level": {"above 1": {"U-Net": scores(0.5), "ridge": scores(0.6)}},
    }
    figure = pictures.errors_by(kinds, units=UNITS)
    figures.save(figure, tmp_path / "errors.png")
    cover, level = figure.axes
    assert [cover.get_title(loc="left"), level.get_title(loc="left")] == list(kinds)
    assert [bar.get_height() for bar in bars(cover)] == [0.2, 0.1, 0.4, 0.3]
    assert [bar.get_height() for bar in bars(level)] == [0.6, 0.5], "in one order of predictions"
    ridge, unet = colour(bars(cover)[0]), colour(bars(cover)[1])
    assert ridge != unet
    for axes in (cover, level):
        assert [colour(bar) for bar in bars(axes)] == [ridge, unet] * (len(bars(axes)) // 2)
        assert "RMSE" in axes.get_ylabel()
    assert cover.get_ylim() == level.get_ylim()
    labels = [text.get_text() for text in cover.get_xticklabels()]
    assert labels == ["deciduous\nbroadleaf\nforest\nn = 1,200", "water\nn = 7"]
    assert key(figure) == ["ridge", "U-Net"]
    # bars of one panel are as wide as those of another, in inches too
    inches = [bar.get_window_extent().width for axes in (cover, level) for bar in bars(axes)]
    assert inches == pytest.approx([inches[0]] * len(inches), rel=0.05)


def test_bars_of_a_group_stand_side_by_side_about_its_middle() -> None:
    by_name = {f"model {i}": scores(0.1 + i / 10) for i in range(10)}
    figure = pictures.errors_by({"land cover": {"a": by_name, "b": by_name}}, units=UNITS)
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars(figure.axes[0])]
    assert all(right <= left + 1e-9 for (_, right), (left, _) in zip(edges[:-1], edges[1:], strict=True))
    for place in (0, 1):
        group = edges[10 * place : 10 * place + 10]
        assert (group[0][0] + group[-1][1]) / 2 == pytest.approx(place)
    assert len({colour(bar) for bar in bars(figure.axes[0])}) == 10


def test_a_prediction_without_a_score_has_no_bar(tmp_path: Path) -> None:
    groups = {
        "both": {"ridge": scores(0.2), "U-Net": scores(0.1)},
        "one": {"U-Net": scores(0.3)},
        "none": {"ridge": scores(math.nan, 0), "U-Net": scores(math.nan, 0)},
        "empty": {},
    }
    figure = pictures.errors_by({"land cover": groups}, units=UNITS)
    figures.save(figure, tmp_path / "errors.png")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in bars(axes)] == [0.2, 0.1, 0.3]
    assert colour(bars(axes)[2]) == colour(bars(axes)[1])
    assert [text.get_text().split("\n")[-1] for text in axes.get_xticklabels()][2:] == ["n = 0", "n = 0"]


def test_errors_that_cannot_be_compared_are_refused() -> None:
    refused: dict[str, pictures.Kinds] = {
        "found {}": {},
        "found {'land cover': 0}": {"land cover": {}},
        "found 0 predictions": {"land cover": {"water": {}}},
        r"'water' was scored on \[8, 9\] pixels": {
            "land cover": {"water": {"ridge": scores(0.1, 9), "U-Net": scores(0.1, 8)}}
        },
    }
    for message, kinds in refused.items():
        with pytest.raises(ValueError, match=message):
            pictures.errors_by(kinds, units=UNITS)
