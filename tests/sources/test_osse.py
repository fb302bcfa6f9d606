"""The simulated window keeps its physics, its noise model and the statistics it was calibrated to."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import block_reduce

from sifscale.sources import osse_fields
from sifscale.sources.osse import simulate

MODIS_BANDS = {"ndvi", "evi", "red", "nir", "blue", "mir"}
FIRST_DAY = datetime.date(2019, 5, 9)
MIDSUMMER = 4  # composite of 12 to 27 July


def periods(number: int) -> list[tuple[datetime.date, datetime.date]]:
    starts = [FIRST_DAY + datetime.timedelta(days=16 * index) for index in range(number)]
    return [(start, start + datetime.timedelta(days=15)) for start in starts]


def small(**changes: Any) -> tuple[xr.Dataset, xr.Dataset]:
    arguments: dict[str, Any] = {
        "height_px": 24,
        "width_px": 24,
        "pixel_m": 4000.0,
        "fine_factor": 2,
        "periods": periods(2),
        "seed": 7,
        "sounding_noise": 0.4,
        "soundings_per_cell": 12.0,
        "missing_share": 0.05,
        "west_m": -60_000.0,
        "north_m": 2_850_000.0,
        "crs": "EPSG:5070",
        "place": "minnesota",
    }
    return simulate(**(arguments | changes))


@pytest.fixture(scope="module")
def window() -> tuple[xr.Dataset, xr.Dataset]:
    """The window as the default config has it."""
    return small(height_px=96, width_px=128, fine_factor=4, periods=periods(6), seed=2019, missing_share=0.02)


def sif_evi_correlation(native: xr.Dataset) -> float:
    sif, evi = native["sif"].values, native["evi"].values
    valid = np.isfinite(sif)
    return float(np.corrcoef(sif[valid], evi[valid])[0, 1])


def block_means(values: NDArray[Any], factor: int) -> NDArray[np.float64]:
    """The reference: scikit-image's block reduction, (sample, y, x) in float64."""
    size = (1, factor, factor)
    means = block_reduce(values.astype(float), size, np.mean)  # type: ignore[no-untyped-call]  # untyped
    return np.asarray(means, dtype=np.float64)


def bilinear_r2(sif: NDArray[np.float32], factor: int) -> float:
    """Explained variance of native SIF (sample, y, x) by its block means brought back bilinearly."""
    seen_share = block_means(np.isfinite(sif), factor)
    seen_share[seen_share == 0] = np.nan
    coarse = block_means(np.nan_to_num(sif), factor) / seen_share
    rows, columns = ((np.arange(n) + 0.5) / factor - 0.5 for n in sif.shape[1:])
    where = np.meshgrid(rows, columns, indexing="ij")
    back = [ndimage.map_coordinates(field, where, order=1, mode="nearest") for field in coarse]
    return float(1 - np.nanmean((sif - np.stack(back)) ** 2) / np.nanvar(sif))


def test_layout(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    native, fine = window
    assert set(native.data_vars) == MODIS_BANDS | {"sif", "sif_error", "n_soundings"}
    assert set(fine.data_vars) == MODIS_BANDS | {"sif_truth", "land_cover"}
    assert native["sif"].dims == ("sample", "y", "x") and native["sif"].shape == (6, 96, 128)
    assert fine["sif_truth"].shape == (6, 384, 512) and fine["land_cover"].dims == ("y", "x")
    for dataset in window:
        special = {"n_soundings": np.int16, "land_cover": np.uint8}
        for name, variable in dataset.data_vars.items():
            assert variable.dtype == special.get(str(name), np.float32), name
            assert {"units", "long_name"} <= set(variable.attrs), name
        assert dataset["time_start"].values[0] == np.datetime64("2019-05-09")
        assert dataset["time_end"].values[0] == np.datetime64("2019-05-24")
        assert dataset["place"].values.tolist() == ["minnesota"] * 6
    for name in ("sif", "sif_error"):
        assert native[name].attrs["units"] == "mW m-2 sr-1 nm-1"
    assert fine["sif_truth"].attrs["units"] == "mW m-2 sr-1 nm-1"


def test_cell_centres_run_from_the_north_western_corner(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    native, fine = window
    np.testing.assert_allclose(native["y"], 2_850_000 - 2000 - 4000 * np.arange(96))
    np.testing.assert_allclose(native["x"], -60_000 + 2000 + 4000 * np.arange(128))
    np.testing.assert_allclose(fine["y"][:2], [2_849_500, 2_848_500])
    np.testing.assert_allclose(fine["x"].values.reshape(-1, 4).mean(axis=1), native["x"])


def test_fine_indices_follow_from_the_reflectances(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    fine = window[1].astype(np.float64)
    red, nir, blue = (fine[band] for band in ("red", "nir", "blue"))
    np.testing.assert_allclose(fine["ndvi"], (nir - red) / (nir + red), atol=1e-7)
    np.testing.assert_allclose(fine["evi"], 2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1), atol=1e-7)
    for band in ("red", "nir", "blue", "mir"):
        assert 0 < float(fine[band].min()) and float(fine[band].max()) < 0.7


def test_native_bands_are_block_means_of_the_fine_ones(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    native, fine = window
    for band in sorted(MODIS_BANDS):
        expected = block_means(fine[band].values, 4)
        np.testing.assert_allclose(native[band], expected, atol=1e-6)


def test_native_sif_is_the_mean_truth_plus_the_stated_noise(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    native, fine = window
    truth = block_means(fine["sif_truth"].values, 4)
    seen = native["n_soundings"].values > 0
    residual = (native["sif"].values[seen] - truth[seen]) / native["sif_error"].values[seen]
    assert abs(residual.std() - 1) < 0.05
    assert abs(residual.mean()) < 5 / np.sqrt(residual.size)
    np.testing.assert_allclose(
        native["sif_error"].values[seen], 0.4 / np.sqrt(native["n_soundings"].values[seen]), rtol=1e-6
    )
    assert native["sif"].min() < 0


def test_cells_without_soundings_are_missing_in_clusters(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    native, _ = window
    missing = np.isnan(native["sif"].values)
    np.testing.assert_array_equal(missing, native["n_soundings"].values == 0)
    np.testing.assert_array_equal(missing, np.isnan(native["sif_error"].values))
    np.testing.assert_allclose(missing.mean(axis=(1, 2)), 0.02, atol=0.005)
    assert missing[:, :, 1:][missing[:, :, :-1]].mean() > 0.5  # 0.02 if they were scattered at random
    assert abs(float(native["n_soundings"].mean()) - 12) < 1.5


def test_noise_free_soundings_give_the_truth() -> None:
    native, fine = small(sounding_noise=0.0, missing_share=0.0)
    truth = block_means(fine["sif_truth"].values, 2)
    np.testing.assert_allclose(native["sif"], truth, atol=1e-6)


def test_water_has_no_sif_and_covers_differ(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    fine = window[1]
    meanings = fine["land_cover"].attrs["flag_meanings"].split()
    assert len(meanings) == len(fine["land_cover"].attrs["flag_values"])
    cover = fine["land_cover"].values
    assert set(np.unique(cover)) == set(fine["land_cover"].attrs["flag_values"].tolist())
    midsummer = fine["sif_truth"].values[MIDSUMMER]
    mean = {name: midsummer[cover == flag].mean() for flag, name in enumerate(meanings)}
    assert np.all(fine["sif_truth"].values[:, cover == meanings.index("water")] == 0)
    assert mean["corn"] > 1.5 * mean["grassland"] and mean["conifer_forest"] < mean["deciduous_forest"]
    assert np.all(fine["sif_truth"].values >= 0)


def test_statistics_are_those_of_the_2019_tables(window: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Late May and June 2019 have r(SIF, EVI) = 0.82 and 0.75, together 0.80; mean SIF 0.69 and 1.08."""
    native, _ = window
    assert abs(sif_evi_correlation(native.isel(sample=MIDSUMMER)) - 0.82) < 0.03
    assert abs(sif_evi_correlation(native) - 0.82) < 0.03
    assert 0.75 < bilinear_r2(native["sif"].values, 4) < 0.88
    mean = native["sif"].mean(("y", "x")).values
    assert abs(mean[2:4].mean() - 0.8) < 0.1  # June
    assert 0.98 < float((native["sif"] < 2.5).where(native["sif"].notnull()).mean())


def test_equal_arguments_give_equal_arrays_and_seeds_differ() -> None:
    first, again, other = small(), small(), small(seed=8)
    for one, two in zip(first, again, strict=True):
        xr.testing.assert_identical(one, two)
    assert not np.array_equal(first[1]["sif_truth"], other[1]["sif_truth"])


def test_more_periods_leave_the_earlier_truth_as_it_is() -> None:
    _, short = small(periods=periods(1))
    _, long = small(periods=periods(3))
    xr.testing.assert_identical(short, long.isel(sample=slice(1)))


def test_truth_is_par_times_nirv_times_yield() -> None:
    shape = (1, 1)
    land = osse_fields.Landscape(
        np.full(shape, osse_fields.CORN, np.uint8), np.zeros(shape), np.ones(shape), np.ones(shape)
    )
    bands = {"red": np.full(shape, 0.05), "nir": np.full(shape, 0.45)}
    sif = osse_fields.sif_truth(land, bands, np.full(shape, 300.0), np.zeros(shape))
    np.testing.assert_allclose(sif, 300 * (0.8 * 0.45) * 0.01 * osse_fields.COVERS[osse_fields.CORN].yield_)
    stressed = osse_fields.sif_truth(land, bands, np.full(shape, 300.0), np.ones(shape))
    np.testing.assert_allclose(stressed / sif, np.exp(-osse_fields.STRESS_YIELD))


def test_par_follows_the_sun() -> None:
    latitude = np.array([30.0, 46.0, 60.0])
    june, march = osse_fields.par_w_m2(172, latitude), osse_fields.par_w_m2(81, latitude)
    assert np.all(june > march) and np.all(np.diff(june) < 0)
    # Equinox: the sine of the sun's height is cos(latitude) x cos(hour angle), 22.5 degrees at 13:30.
    expected = 1361 * 0.40 * 0.72 * np.cos(np.deg2rad(latitude)) * np.cos(np.deg2rad(22.5))
    np.testing.assert_allclose(march, expected, rtol=1e-6)
    np.testing.assert_array_equal(osse_fields.par_w_m2(355, np.array([85.0])), 0.0)


def test_smooth_field_has_unit_variance_and_its_length() -> None:
    field = osse_fields.smooth_field(np.random.default_rng(0), (400, 500), 4.0)
    assert field.shape == (400, 500)
    assert abs(field.std() - 1) < 0.05
    # White noise under a Gaussian kernel of sd s has the autocorrelation exp(-d^2 / (4 s^2)).
    correlation = np.mean(field[:, 4:] * field[:, :-4]) / field.var()
    assert abs(correlation - np.exp(-0.25)) < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height_px": 0}, "height_px must be at least 1, found 0"),
        ({"width_px": -3}, "width_px must be at least 1, found -3"),
        ({"fine_factor": 0}, "fine_factor must be at least 1, found 0"),
        ({"pixel_m": 0.0}, "pixel_m must be above 0, found 0.0"),
        ({"pixel_m": float("nan")}, "pixel_m must be above 0, found nan"),
        ({"west_m": float("inf")}, "west_m must be finite, found inf"),
        ({"crs": " "}, "crs must not be empty"),
        ({"place": ""}, "place must not be empty"),
        ({"periods": []}, "periods must not be empty"),
        (
            {"periods": [(FIRST_DAY, FIRST_DAY - datetime.timedelta(days=1))]},
            "found 2019-05-09 to 2019-05-08",
        ),
        ({"periods": periods(1) * 2}, "in order and apart, found 2019-05-09 after 2019-05-24"),
        ({"seed": -1}, "seed must not be negative, found -1"),
        ({"sounding_noise": -0.1}, "sounding_noise must be 0 or more, found -0.1"),
        ({"soundings_per_cell": 0.0}, r"soundings_per_cell must be in \(0, 5000\], found 0.0"),
        ({"missing_share": 1.0}, r"missing_share must be in \[0, 1\), found 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)
