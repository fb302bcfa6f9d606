"""Parts of a window computed: against the known truth of a simulation, and where input is missing or odd."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer
from scipy import sparse

from sifscale.composites import Part, parts
from sifscale.config import GriddedWindow
from sifscale.cube import open_cube
from sifscale.footprints import footprint_means, overlap_areas
from sifscale.grid import Grid
from sifscale.gridding import area_of, compute
from sifscale.inventory import take_stock
from sifscale.sources import SourceError
from sifscale.sources.sinusoidal import SINUSOIDAL_CRS, tile_grid
from sifscale.sources.troposif import inspect_troposif

if TYPE_CHECKING:
    from conftest import Workplace

Array = NDArray[Any]
Planner = Callable[..., list[Part]]

NATIVE = Grid("EPSG:5070", -60_000.0, 2_850_000.0, 4000.0, 4000.0, 48, 48)
DAYS = ("2019-05-09", "2019-05-25", "2019-06-10")
ONE_BAND = "window.suggested.bands=[coarse]"  # what a model would read; of no matter here
SOUNDINGS_ONLY = ("window.vegetation=null", "window.fine_layers=[]", ONE_BAND)
GEOLOCATIONS = "PRODUCT/SUPPORT_DATA/GEOLOCATIONS"


@pytest.fixture(scope="module")
def raw(tiny_cube_path: Path) -> Path:
    """The simulated files of the tiny cube, only to be read."""
    return tiny_cube_path.parent / "raw" / "tiny"


@pytest.fixture(scope="module")
def plan(workplace: Workplace, raw: Path) -> Planner:
    """The parts of the tiny window, changed by words of a command line, from the simulated files."""

    def make(*words: str) -> list[Part]:
        config = workplace.config("dask.scheduler=synchronous", *words)
        assert isinstance(config.window, GriddedWindow)
        stock = take_stock(config.window, raw, config.dask)
        return parts(config.window, raw, stock.soundings, stock.granules)

    return make


def observed(raw: Path, start: str) -> dict[str, Array]:
    """The soundings of 16 days that pass the window's limits, read from the files without the package."""
    names = {
        "sif": "PRODUCT/SIF_743",
        "error": "PRODUCT/SIF_ERROR_743",
        "longitude": f"{GEOLOCATIONS}/longitude_bounds",
        "latitude": f"{GEOLOCATIONS}/latitude_bounds",
        "cloud": "PRODUCT/SUPPORT_DATA/INPUT_DATA/cloud_fraction_L2",
    }
    days = [datetime.date.fromisoformat(start) + datetime.timedelta(days=n) for n in range(16)]
    columns: dict[str, list[Array]] = {name: [] for name in names}
    for path in (raw / "troposif" / f"TROPOSIF_L2B_{day}.nc" for day in days):
        if path.exists():
            with h5py.File(path) as file:
                for name, variable in names.items():
                    columns[name].append(file[variable][()].astype(np.float64))
    found = {name: np.concatenate(values) for name, values in columns.items()}
    kept = (np.abs(found["sif"]) < 20) & (found["cloud"] <= 0.5)
    return {name: values[kept] for name, values in found.items()}


def truth(raw: Path, start: str) -> xr.Dataset:
    return xr.load_dataset(raw / "truth" / f"truth_{start}.nc", engine="h5netcdf")


def test_native_sif_is_the_truth_seen_through_the_footprints_with_the_stated_error(
    raw: Path, tiny_cube_path: Path
) -> None:
    cube = open_cube(tiny_cube_path).native.load()
    to_grid = Transformer.from_crs("EPSG:4326", NATIVE.crs, always_xy=True)
    standardised, bias, variance = [], 0.0, 0.0
    for sample, start in enumerate(DAYS):
        seen = observed(raw, start)
        x, y = to_grid.transform(seen["longitude"], seen["latitude"])
        inside = ((x > -60e3) & (x < 132e3) & (y > 2658e3) & (y < 2850e3)).all(axis=1)  # where the truth is known
        mean = np.full(len(x), np.nan)
        field = truth(raw, start)["sif_truth"].values.astype(np.float64)
        mean[inside] = footprint_means(NATIVE.refine(4), field, x[inside], y[inside])
        # Each row of the matrix holds the shares of all soundings in a cell, scaled to a sum of 1.
        footprint, row, column, overlap = overlap_areas(NATIVE, x, y)
        shoelace = np.abs((x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1)) / 2
        shape = (48 * 48, len(x))
        shares = sparse.csr_array((overlap / shoelace[footprint], (row * 48 + column, footprint)), shape=shape)
        total = shares.sum(axis=1)
        weights = sparse.diags_array(1 / np.maximum(total, 1e-12)) @ shares
        touched = (shares > 0) @ (~inside).astype(float)
        known = (total >= 0.2) & (touched == 0)
        difference = cube["sif"].values[sample].ravel() - weights @ np.where(inside, mean, 0)
        error = np.sqrt(weights.power(2) @ seen["error"] ** 2)
        assert known.sum() > 1500
        cells = cube.isel(sample=sample)
        np.testing.assert_allclose(cells["sif_error"].values.ravel()[known], error[known], rtol=1e-5)
        np.testing.assert_allclose(cells["sounding_weight"].values.ravel(), total, rtol=1e-4, atol=1e-5)
        assert np.array_equal(np.isnan(cells["sif"].values.ravel()), total < 0.2)
        standardised.append(difference[known] / error[known])
        # Neighbouring cells share soundings: the error of their mean is that of independent soundings, added up.
        bias += difference[known].sum()
        variance += ((weights[known].sum(axis=0) * seen["error"]) ** 2).sum()
    assert abs(bias) < 3 * np.sqrt(variance)
    assert np.concatenate(standardised).std() == pytest.approx(1, abs=0.1)


def there_and_back(field: Array, grid: Grid) -> Array:
    """Nearest-neighbour resampling of a field to the 1 km sinusoidal pixels and back, by pyproj alone."""
    forth = Transformer.from_crs(grid.crs, SINUSOIDAL_CRS, always_xy=True)
    x, y = forth.transform(*np.meshgrid(grid.x, grid.y))
    pixel_m = tile_grid(0, 0, 1200).dx
    centre_x, centre_y = (np.floor(a / pixel_m) * pixel_m + pixel_m / 2 for a in (x, y))
    back_x, back_y = forth.transform(centre_x, centre_y, direction="INVERSE")
    row = np.clip(np.floor((grid.north - back_y) / grid.dy).astype(int), 0, grid.height - 1)
    column = np.clip(np.floor((back_x - grid.west) / grid.dx).astype(int), 0, grid.width - 1)
    nearest: Array = field[row, column]
    return nearest


def rms(values: Array) -> float:
    return float(np.sqrt(np.nanmean(np.square(values))))


@pytest.mark.parametrize("band", ["ndvi", "evi", "red", "nir", "blue", "mir"])
def test_modis_bands_are_the_truth_within_noise_and_regridding_error(
    band: str, raw: Path, tiny_cube_path: Path
) -> None:
    fine = open_cube(tiny_cube_path).fine
    assert fine is not None
    rng = np.random.default_rng(1)
    for sample, start in enumerate(DAYS):
        true = truth(raw, start)
        found = fine[band].values[sample]
        # What MODIS adds: 2 % and 0.003 of noise in each reflectance, haze of up to 5 % in one pixel of 20.
        noisy = {name: true[name].values.astype(np.float64) for name in ("red", "nir", "blue", "mir")}
        for name, field in noisy.items():
            haze = np.where(rng.uniform(size=field.shape) < 0.05, 0.05, 0.0)
            noise = 0.02 * field * rng.normal(size=field.shape) + 0.003 * rng.normal(size=field.shape)
            noisy[name] = np.maximum((field + noise) * (1 - haze) + 0.58 * haze, 0.001)
        red, nir, blue = noisy["red"], noisy["nir"], noisy["blue"]
        noisy["ndvi"] = (nir - red) / (nir + red)
        noisy["evi"] = 2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1)
        field = true[band].values.astype(np.float64)
        bound = rms(noisy[band] - field) + rms(there_and_back(field, NATIVE.refine(4)) - field)
        error = rms(found - field)
        assert error < bound and np.isfinite(found).mean() > 0.9
        shifted = [rms(found - np.roll(field, by, (0, 1))) for by in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        assert error < min(shifted)  # registered to better than half a pixel


def test_the_truth_of_the_cube_is_that_of_its_file(raw: Path, tiny_cube_path: Path) -> None:
    fine = open_cube(tiny_cube_path).fine
    assert fine is not None
    for sample, start in enumerate(DAYS):
        for band in ("sif_truth", "land_cover"):
            assert np.array_equal(fine[band].values[sample], truth(raw, start)[band].values)
    assert fine["land_cover"].attrs["flag_meanings"].split()


def sif_of(plan: Planner, *words: str) -> dict[str, Array]:
    return compute(plan(*SOUNDINGS_ONLY, *words)[0])[0]


def test_methods_of_gridding_agree_as_well_as_they_should(plan: Planner) -> None:
    exact = sif_of(plan)
    subpixel, centre = (
        sif_of(plan, f"window.soundings.gridding.method={method}") for method in ("subpixel", "centre")
    )
    near, far = (rms(other["sif"] - exact["sif"]) for other in (subpixel, centre))
    assert 0 < near < 0.05 < far < 1
    assert np.array_equal(centre["sounding_weight"], centre["n_soundings"])
    assert (exact["n_soundings"] > exact["sounding_weight"]).all()
    for other in (subpixel, centre):
        assert other["sounding_weight"].sum() == pytest.approx(exact["sounding_weight"].sum(), rel=0.02)


def test_error_weights_lower_the_error_and_do_not_change_which_cells_are_seen(plan: Planner) -> None:
    plain, weighted = (
        sif_of(plan, "window.soundings.gridding.min_weight=1", f"window.soundings.gridding.error_weighted={choice}")
        for choice in ("false", "true")
    )
    assert 0 < np.isnan(plain["sif"]).mean() < 0.5
    for band in ("sounding_weight", "n_soundings"):
        assert np.array_equal(plain[band], weighted[band])
    assert np.array_equal(np.isnan(plain["sif"]), np.isnan(weighted["sif"]))
    assert rms(plain["sif"] - weighted["sif"]) > 0.01
    # Shares differ within a cell, so that weights 1 / error^2 are best in most cells only.
    assert np.nanmean(weighted["sif_error"]) < np.nanmean(plain["sif_error"])


def shifted_copy(path: Path, copy: Path, since: str, east_deg: float = 0.0, south_deg: float = 0.0) -> Path:
    """A granule whose times count from another instant and whose soundings lie elsewhere."""
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        file["PRODUCT/delta_time"].attrs["units"] = f"milliseconds since {since}"
        for group, name in (("PRODUCT", "{}"), (GEOLOCATIONS, "{}_bounds")):
            longitude, latitude = (file[f"{group}/{name.format(axis)}"] for axis in ("longitude", "latitude"))
            longitude[...] = (longitude[...].astype(float) + east_deg + 180) % 360 - 180
            latitude[...] = latitude[...] - south_deg
    return copy


def test_a_swath_over_two_composites_goes_to_both_by_time(plan: Planner, raw: Path, tmp_path: Path) -> None:
    day = raw / "troposif" / "TROPOSIF_L2B_2019-05-10.nc"
    with h5py.File(day) as file:
        since_ms = np.sort(file["PRODUCT/delta_time"][()])
        total = len(since_ms)
    middle = datetime.timedelta(milliseconds=int(np.median(since_ms)))
    since = datetime.datetime(2019, 5, 25) - middle
    swath = inspect_troposif(shifted_copy(day, tmp_path / "both.nc", since.isoformat(" ")))
    both, whole = plan(*SOUNDINGS_ONLY), plan(*SOUNDINGS_ONLY)[0]
    planned = parts(whole.window, raw, [swath], [])
    assert [part.soundings for part in planned] == [(swath,), (swath,)] and len(both) == 2
    counts = [sum(compute(part)[2].soundings.values()) for part in planned]
    alone = sum(compute(dataclasses.replace(whole, soundings=(inspect_troposif(day),)))[2].soundings.values())
    assert sum(counts) == alone and min(counts) > 0.2 * alone and alone <= total


def test_a_geographic_grid_across_the_dateline_takes_soundings_of_both_sides(
    workplace: Workplace, raw: Path, tmp_path: Path
) -> None:
    day = raw / "troposif" / "TROPOSIF_L2B_2019-05-10.nc"
    swath = inspect_troposif(shifted_copy(day, tmp_path / "pacific.nc", "2019-05-10", east_deg=275.5))
    words = ["window.grid.crs=EPSG:4326", "window.grid.bounds_crs=EPSG:4326", "window.grid.pixel=0.04"]
    grids = [[179.0, 46.0, 181.0, 48.0], [-96.5, 46.0, -94.5, 48.0]]
    found = []
    for bounds, info in zip(grids, (swath, inspect_troposif(day)), strict=True):
        window = workplace.config(*SOUNDINGS_ONLY, *words, f"window.grid.bounds={bounds}").window
        assert isinstance(window, GriddedWindow)
        found.append(compute(parts(window, raw, [info], [])[0]))
    (pacific, _, counts), (here, _, counts_here) = found
    assert counts.soundings == counts_here.soundings and counts.soundings["kept"] > 100
    assert np.allclose(pacific["sif"].astype(float), here["sif"].astype(float), atol=1e-3, equal_nan=True)


def test_the_area_of_a_grid_holds_all_of_it() -> None:
    area = area_of(NATIVE)
    assert area is not None
    x, y = np.meshgrid(np.linspace(-60e3, 132e3, 300), np.linspace(2658e3, 2850e3, 300))
    longitude, latitude = Transformer.from_crs("EPSG:5070", "EPSG:4326", always_xy=True).transform(x, y)
    assert area.contains(longitude, latitude, 0.01).all()
    assert area_of(Grid("EPSG:3413", -1e6, 1e6, 1e4, 1e4, 200, 200)) is None  # holds the pole


def test_a_missing_tile_is_named_and_left_empty_or_stops(plan: Planner) -> None:
    part = dataclasses.replace(plan()[0], granules=())
    native, fine, tally = compute(part)
    assert tally.missing_tiles == {"h11v04 of 2019-05-09"}
    assert np.isnan(fine["ndvi"]).all() and np.isnan(native["ndvi"]).all() and np.isfinite(native["sif"]).any()
    with pytest.raises(SourceError, match=r"^composite 2019-05-09: no MODIS granule for tile h11v04; add it .*$"):
        compute(dataclasses.replace(plan("window.vegetation.missing_tile=stop")[0], granules=()))


def test_a_granule_of_other_pixels_is_left_out_and_not_pasted_askew(plan: Planner) -> None:
    part = plan()[0]
    image = part.granules[0]
    other = dataclasses.replace(image, path=part.raw / "MOD13A1.hdf", grid=tile_grid(11, 4, 2400))
    _, fine, tally = compute(dataclasses.replace(part, granules=(image, other)))
    assert list(tally.faults) == ["MOD13A1.hdf"] and "its pixels have 463.3 m, others" in tally.faults["MOD13A1.hdf"]
    np.testing.assert_array_equal(fine["ndvi"], compute(part)[1]["ndvi"])


def test_a_subset_on_the_lattice_stands_for_its_tile(plan: Planner) -> None:
    part = plan()[0]
    subset = dataclasses.replace(part.granules[0], tile=None)
    _, fine, tally = compute(dataclasses.replace(part, granules=(subset,)))
    assert not tally.missing_tiles and np.isfinite(fine["ndvi"]).any()


def with_window(part: Part, **changes: object) -> Part:
    return dataclasses.replace(part, window=part.window.model_copy(update=changes))


def test_a_layer_without_its_file_is_named_and_left_empty_or_stops(plan: Planner) -> None:
    part = plan("window.vegetation=null", ONE_BAND)[0]
    sif_truth, land_cover = part.window.fine_layers
    layers = (sif_truth.model_copy(update={"path": "truth/absent_{start}.nc"}), land_cover)
    _, fine, tally = compute(with_window(part, fine_layers=layers))
    assert list(tally.faults) == ["truth/absent_2019-05-09.nc"] and np.isnan(fine["sif_truth"]).all()
    assert np.isfinite(fine["land_cover"]).all()
    with pytest.raises(SourceError, match=r"absent_2019-05-09.nc: no such file; check paths.raw"):
        compute(with_window(part, fine_layers=layers, strict=True))
