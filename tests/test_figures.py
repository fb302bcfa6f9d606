"""Each picture is made from small random input with holes; what a reader relies on is checked."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from sifscale import figures
from sifscale.figures import MapRow

UNITS = "mW m-2 sr-1 nm-1"
PARTS = {0: "train", 1: "validation", 2: "test", 3: "guard"}


def holed(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    field = rng.normal(1.0, 0.4, shape)
    field[rng.random(shape) < 0.1] = np.nan
    return field


def row(shape: tuple[int, int], seed: int) -> MapRow:
    return MapRow(f"row {seed}", *(holed(shape, 10 * seed + i) for i in range(3)))


def drawn(image: AxesImage) -> NDArray[np.float64]:
    values = image.get_array()
    assert values is not None
    return np.ma.filled(values, np.nan)


def loss_scale(losses: list[float]) -> str:
    return figures.curves({"val/loss": list(enumerate(losses))}, None).axes[0].get_yscale()


def test_save_writes_a_readable_png_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.png"
    for _ in range(2):  # the second call replaces the first file
        figures.save(Figure(figsize=(3, 2)), path)
    assert matplotlib.image.imread(path).shape == (260, 390, 4)
    assert [p.name for p in path.parent.iterdir()] == ["maps.png"]


def test_save_keeps_the_old_file_when_drawing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "maps.png"
    figures.save(Figure(), path)
    old = path.read_bytes()

    def half_written(_: Figure, target: Path, **__: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", half_written)
    with pytest.raises(OSError, match="disk full"):
        figures.save(Figure(), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_save_refuses_other_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end in \.png"):
        figures.save(Figure(), tmp_path / "maps.jpg")


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([2.1, 0.1], "log"),
        ([2.0, 0.1], "linear"),
        ([2.0, 0.0], "linear"),
        ([5.0, -0.1], "linear"),
        ([2.1, math.nan, 0.1, math.inf], "log"),
        ([math.nan], "linear"),
    ],
)
def test_loss_is_logarithmic_beyond_a_factor_of_20(losses: list[float], scale: str) -> None:
    assert loss_scale(losses) == scale


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=6))
def test_log_scale_rule_holds_for_all_positive_losses(losses: list[float]) -> None:
    assert (loss_scale(losses) == "log") == (max(losses) > 20 * min(losses))


def test_curves_draw_what_is_there_and_mark_the_best_epoch(tmp_path: Path) -> None:
    series = [(0, 0.5), (1, math.nan), (4, 0.3)]
    names = ("train/loss", "val/loss", "val/r2", "val/rmse", "val/mae", "perf/samples_per_s")
    figure = figures.curves({name: series for name in names}, 4)
    assert [axes.get_ylabel().split(" (")[0] for axes in figure.axes] == [
        "loss",
        "validation R²",
        "validation error",
    ]
    for axes in figure.axes:
        labels = [str(line.get_label()) for line in axes.lines]
        assert "best epoch: 4" in labels and "perf/samples_per_s" not in labels
        best = [line.get_xydata() for line in axes.lines if line.get_marker() == "o"]
        assert best and all(np.array_equal(np.asarray(point), [[4, 0.3]]) for point in best)
    figures.save(figure, tmp_path / "curves.png")
    assert len(figures.curves({"val/loss": series}, None).axes) == 1


@pytest.mark.parametrize(
    ("history", "best"), [({}, None), ({"x": [(0, 1.0)]}, 0), ({"val/r2": [(0, 1.0)]}, 3)]
)
def test_curves_refuse_unknown_metrics_and_epochs(
    history: dict[str, list[tuple[int, float]]], best: int | None
) -> None:
    with pytest.raises(ValueError, match="history holds|not logged"):
        figures.curves(history, best)


def test_scatter_counts_finite_pairs_and_fits_them(tmp_path: Path) -> None:
    actual = holed((30, 40))
    predicted = 0.5 * actual + 0.25
    predicted[0] = np.nan
    figure = figures.scatter(actual, predicted, label="SIF743", units=UNITS, r2=0.8126, rmse=0.2)
    axes = figure.axes[0]
    finite = int((np.isfinite(actual) & np.isfinite(predicted)).sum())
    assert axes.texts[0].get_text().startswith(f"n = {finite:,}\nR² = 0.813\nRMSE = 0.200 mW m$^{{-2}}$")
    assert int(np.asarray(axes.collections[0].get_array()).sum()) == finite
    fit = next(line for line in axes.lines if str(line.get_label()).startswith("fit"))
    assert fit.get_label() == "fit: 0.50 x + 0.25"
    x, y = np.asarray(fit.get_xydata()).T
    np.testing.assert_allclose(y, 0.5 * x + 0.25)
    assert axes.get_xlim() == axes.get_ylim()
    figures.save(figure, tmp_path / "scatter.png")


def test_scatter_of_a_constant_has_no_fitted_line() -> None:
    figure = figures.scatter(np.ones(5), np.ones(5), label="SIF743", units=UNITS, r2=math.nan, rmse=0.0)
    assert [line.get_label() for line in figure.axes[0].lines] == ["1:1"]


@pytest.mark.parametrize(
    ("actual", "predicted"), [(np.ones(3), np.ones(4)), (np.array([1, np.nan]), np.ones(2))]
)
def test_scatter_refuses_unlike_or_too_few_values(
    actual: NDArray[np.float64], predicted: NDArray[np.float64]
) -> None:
    with pytest.raises(ValueError, match="pass equal shapes|at least 2 finite pairs, found 1"):
        figures.scatter(actual, predicted, label="SIF743", units=UNITS, r2=0.0, rmse=0.0)


@pytest.mark.parametrize("shapes", [[(97, 173)], [(40, 40)] * 5, [(12, 30), (40, 20)]])
def test_maps_share_one_scale_and_a_symmetric_error_scale(
    shapes: list[tuple[int, int]], tmp_path: Path
) -> None:
    rows = [row(shape, seed) for seed, shape in enumerate(shapes)]
    figure = figures.maps(rows, units=UNITS)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 4 * len(rows) and len(figure.axes) == 4 * len(rows) + 2
    targets = np.concatenate([r.target.ravel() for r in rows])
    expected = tuple(np.nanpercentile(targets, (2, 98)))
    errors = np.concatenate([(r.prediction - r.target).ravel() for r in rows])
    largest = np.abs(np.nanpercentile(errors, (2, 98))).max()
    for i, image in enumerate(images):
        assert (image.norm.vmin, image.norm.vmax) == ((-largest, largest) if i % 4 == 3 else expected)
        assert image.cmap(np.ma.masked)[:3] == to_rgb(figures.MISSING)
    np.testing.assert_array_equal(drawn(images[3]), rows[0].prediction - rows[0].target)
    figures.save(figure, tmp_path / "maps.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "maps.png").shape
    assert width < 1700 and height < 2000


def test_maps_of_a_perfect_constant_prediction_keep_a_scale() -> None:
    flat = np.ones((4, 4))
    figure = figures.maps([MapRow("flat", flat, flat, flat)], units=UNITS)
    for axes in figure.axes[:4]:
        low, high = axes.images[0].get_clim()
        assert low < high


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [MapRow("a", np.ones((2, 2)), np.ones((4, 4)), np.ones((4, 4)))],
        [MapRow("a", np.ones(4), np.ones(4), np.ones(4))],
        [MapRow("a", np.ones((4, 4)), np.ones((4, 4)), np.full((4, 4), np.nan))],
    ],
)
def test_maps_refuse_what_cannot_be_drawn(rows: list[MapRow]) -> None:
    with pytest.raises(ValueError, match="no rows|has shape|no finite value"):
        figures.maps(rows, units=UNITS)


def test_lbp_panel_colours_follow_the_kind_of_channel(tmp_path: Path) -> None:
    source = holed((20, 30))
    missing = np.isnan(source)
    rng = np.random.default_rng(1)
    uniform = np.where(missing, np.nan, rng.integers(0, 10, source.shape))
    channels = {f"bit {i}": np.where(missing, np.nan, rng.integers(0, 2, source.shape)) for i in range(8)}
    channels |= {"mask": missing, "uniform": uniform, "var": source**2}
    figure = figures.lbp_panel(source, channels, source_label="NDVI (dimensionless)")
    panels = {axes.get_title(): axes.images[0] for axes in figure.axes if axes.images}
    assert list(panels) == ["source", *channels]
    assert [panels[name].cmap.N for name in ("bit 0", "mask", "uniform", "var")] == [2, 2, 10, 256]
    assert len(figure.axes) == 12 + 3  # colour bars: source, uniform, var
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "no value"]
    np.testing.assert_array_equal(np.isnan(drawn(panels["uniform"])), missing)
    figures.save(figure, tmp_path / "lbp.png")


@pytest.mark.parametrize("count", range(1, 12))
def test_lbp_panel_shows_1_to_11_channels(count: int) -> None:
    channels = {str(i): np.full((5, 5), 3.0) for i in range(count)}
    figure = figures.lbp_panel(holed((5, 5)), channels, source_label="EVI (dimensionless)")
    assert sum(bool(axes.images) for axes in figure.axes) == count + 1


@pytest.mark.parametrize(
    "channels", [{}, {str(i): np.ones((5, 5)) for i in range(12)}, {"a": np.ones((4, 5))}]
)
def test_lbp_panel_refuses_wrong_channels(channels: dict[str, NDArray[np.float64]]) -> None:
    with pytest.raises(ValueError, match="choose 1 to 11|has shape"):
        figures.lbp_panel(holed((5, 5)), channels, source_label="EVI (dimensionless)")


@pytest.mark.parametrize("count", [1, 25])
def test_correlation_matrix_prints_every_finite_number_readably(count: int, tmp_path: Path) -> None:
    matrix = np.corrcoef(np.random.default_rng(0).normal(size=(count, 5))).reshape(count, count)
    matrix[0, -1] = np.nan
    matrix[-1, 0] = -0.001
    figure = figures.correlation_matrix([f"band {i}" for i in range(count)], matrix, title="train")
    axes = figure.axes[0]
    assert len(axes.texts) == np.isfinite(matrix).sum()
    for text in axes.texts:
        j, i = (int(p) for p in text.get_position())
        assert float(text.get_text().replace("−", "-")) == pytest.approx(matrix[i, j], abs=0.00501)
        assert text.get_text() != "−0.00"
        assert contrast(to_rgb(text.get_color()), axes.images[0].to_rgba(matrix)[i, j, :3]) > 3.4
    figures.save(figure, tmp_path / "correlation.png")


def contrast(a: tuple[float, float, float], b: NDArray[np.float64]) -> float:
    """Contrast ratio of WCAG 2.1 with the exact sRGB transfer function, channel by channel."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(list(a)), luminance([float(c) for c in b])))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("count", "matrix"), [(2, np.eye(3)), (0, np.empty((0, 0))), (2, 2.5 * np.eye(2))])
def test_correlation_matrix_refuses_wrong_input(count: int, matrix: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="has shape|reaches 2.5"):
        figures.correlation_matrix(["band"] * count, matrix, title="train")


def test_split_map_colours_each_part_and_states_its_share(tmp_path: Path) -> None:
    parts = np.repeat(np.array([0, 0, 1, 2, 3, -1, 0, 0, 0, 0], dtype=np.int8), 10).reshape(10, 10)
    figure = figures.split_map(parts, names={**PARTS, -1: "not observed"}, title="blocks")
    key = figure.legends[0]
    labels = ["not observed (10%)", "train (60%)", "validation (10%)", "test (10%)", "guard (10%)"]
    assert [text.get_text() for text in key.get_texts()] == labels
    image = figure.axes[0].images[0]
    colours = image.to_rgba(drawn(image))
    by_code = dict(zip([-1, 0, 1, 2, 3], key.get_patches(), strict=True))
    for code, patch in by_code.items():
        assert (colours[parts == code] == patch.get_facecolor()).all()
    figures.save(figure, tmp_path / "split.png")


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (np.full((3, 3), 7, dtype=np.int8), PARTS),
        (np.zeros(3, dtype=np.int8), PARTS),
        (np.zeros((3, 3), dtype=np.int8), {i: f"part {i}" for i in range(7)}),
    ],
)
def test_split_map_refuses_wrong_input(parts: NDArray[np.int8], names: dict[int, str]) -> None:
    with pytest.raises(ValueError, match=r"codes \[7\]|has shape|at most 6"):
        figures.split_map(parts, names=names, title="blocks")
