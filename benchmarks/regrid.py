"""Regridding a MODIS tile to 1 km Albers, all layers at once, beside rioxarray, odc-geo, pyresample and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer
from scipy import ndimage

from benchmarks.measure import Row, Setting, Way, compare
from sifscale.grid import Grid
from sifscale.regrid import Resampler

Layers = NDArray[np.float32]

SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
PIXEL_M = 926.6254331
TILE_PX, LAYERS = 1200, 24  # h11v04
QUICK_PX, QUICK_LAYERS = 80, 20
BAR = 5.0  # beside rioxarray, building the table included
CLOSE = 1e-4  # of values with a standard deviation of about 0.14, beside SciPy, which works in float64


@dataclass(frozen=True)
class Task:
    """Layers (layer, y, x) on a grid, and the grid they are wanted on."""

    source: Grid
    target: Grid
    layers: Layers


def task_of(size: int, number: int) -> Task:
    """Smooth noise with gaps; the target lies inside the tile but for its corners."""
    source = Grid(SINUSOIDAL, -7783653.638, 5559752.599, PIXEL_M, PIXEL_M, size, size)
    side = int(size * PIXEL_M / 1000)
    x, y = Transformer.from_crs(SINUSOIDAL, "EPSG:5070", always_xy=True).transform(
        source.west + size * PIXEL_M / 2, source.north - size * PIXEL_M / 2
    )
    west, north = round(x / 1000 - side / 2) * 1000.0, round(y / 1000 + side / 2) * 1000.0
    target = Grid("EPSG:5070", west, north, 1000.0, 1000.0, side, side)
    noise = np.random.default_rng(1).normal(size=(number, size, size))
    layers = ndimage.gaussian_filter(noise, (0, 2, 2)).astype(np.float32)
    layers[:, ::37, ::11] = np.nan
    return Task(source, target, layers)


def by_ours(task: Task) -> Layers:
    """The table of weights made, and all layers brought over."""
    found: Layers = Resampler(task.source, task.target, "bilinear").apply(task.layers)
    return found


def by_scipy(task: Task) -> Layers:
    """Bilinear at the exact place of each cell's centre, layer by layer; gaps spread to all that touch them."""
    source, target = task.source, task.target
    x, y = np.meshgrid(target.x, target.y)
    x, y = Transformer.from_crs(target.crs, source.crs, always_xy=True).transform(x, y)
    places = np.stack([(source.north - y) / source.dy - 0.5, (x - source.west) / source.dx - 0.5])
    found = [ndimage.map_coordinates(layer, places, np.float32, order=1, cval=np.nan) for layer in task.layers]
    return np.stack(found)


def as_xarray(grid: Grid, layers: Layers) -> xr.DataArray:
    """The layers as rioxarray wants them."""
    import rioxarray  # noqa: F401 (registers the accessor .rio)

    array = xr.DataArray(layers, {"y": grid.y, "x": grid.x}, ("layer", "y", "x"))
    array.rio.write_crs(grid.crs, inplace=True)
    array.rio.write_nodata(np.nan, inplace=True)
    return array


def rioxarray_way(task: Task) -> Callable[[], Layers]:
    """``reproject_match``, one thread."""
    from rasterio.enums import Resampling

    given = as_xarray(task.source, task.layers)
    like = as_xarray(task.target, np.zeros((1, task.target.height, task.target.width), np.float32))
    return lambda: given.rio.reproject_match(like, resampling=Resampling.bilinear, num_threads=1).to_numpy()


def odc_way(task: Task) -> Callable[[], Layers]:
    """``xr_reproject`` to a geobox."""
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import xr_reproject

    target = task.target
    box = (target.west, target.north - target.height * target.dy, target.west + target.width * target.dx, target.north)
    geobox = GeoBox.from_bbox(box, target.crs, shape=(target.height, target.width), tight=True)
    given = as_xarray(task.source, task.layers)
    return lambda: xr_reproject(given, geobox, resampling="bilinear").to_numpy()


def pyresample_way(task: Task) -> Callable[[], Layers]:
    """``NumpyBilinearResampler``, its neighbours looked up for each call, as ours are; it has layers last."""
    from pyresample.bilinear import NumpyBilinearResampler
    from pyresample.geometry import AreaDefinition

    def area(grid: Grid, name: str) -> Any:
        box = (grid.west, grid.north - grid.height * grid.dy, grid.west + grid.width * grid.dx, grid.north)
        return AreaDefinition(name, name, name, grid.crs, grid.width, grid.height, box)

    source, target = area(task.source, "tile"), area(task.target, "albers")
    last = np.ascontiguousarray(np.moveaxis(task.layers, 0, -1))

    def run() -> Layers:
        with warnings.catch_warnings():
            # It writes the CRS as a PROJ string, which is all that it needs.
            warnings.filterwarnings("ignore", "You will likely lose important projection information", UserWarning)
            found = NumpyBilinearResampler(source, target, 3000, neighbours=16).resample(last, fill_value=np.nan)
        return np.moveaxis(np.asarray(found, np.float32), -1, 0)

    return run


PEERS: dict[str, tuple[str, Callable[[Task], Callable[[], Layers]]]] = {
    "rioxarray": ("rioxarray", rioxarray_way),
    "odc-geo": ("odc.geo", odc_way),
    "pyresample": ("pyresample", pyresample_way),
    "SciPy map_coordinates": ("scipy", lambda task: partial(by_scipy, task)),
}


def is_there(module: str) -> bool:
    """Whether it can be imported, parents included."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def differences(ours: Layers, theirs: Layers) -> tuple[float, str]:
    """Largest difference where both have a value, and what to say of it."""
    gap = np.abs(ours - theirs)
    return float(np.nanmax(gap)), f"differs by {np.nanmedian(gap):.0e} in the median, {np.nanmax(gap):.0e} at most"


def rows(setting: Setting) -> Iterator[Row]:
    """The table made for every call; then with the table at hand, as for the next composite."""
    task = task_of(*((QUICK_PX, QUICK_LAYERS) if setting.quick else (TILE_PX, LAYERS)))
    found, size = by_ours(task), task.layers.size / 1e6
    exact = differences(found, by_scipy(task))[0] <= CLOSE
    peers = []
    for name, (module, make) in PEERS.items():
        bar = BAR if name == "rioxarray" else None
        if not is_there(module):
            peers.append(Way(name, None, bar=bar))
            continue
        run = make(task)
        agrees = exact if module == "scipy" else None  # the others do not claim to be exact
        peers.append(Way(name, run, size, bar, agrees, differences(found, run())[1]))
    limit = Way("copy", task.layers.copy, size)
    plan = Resampler(task.source, task.target, "bilinear")
    case = f"{len(task.layers)} layers of {task.source.height} x {task.source.width}, bilinear"
    made = Way("ours", partial(by_ours, task), size)
    yield from compare("regridding", f"{case}, table made", "Mpx/s", made, peers, setting, limit)
    at_hand = Way("ours", partial(plan.apply, task.layers), size)
    first = [way for way in peers if way.name == "rioxarray"]
    yield from compare("regridding", f"{case}, table at hand", "Mpx/s", at_hand, first, setting, limit)
