"""What all tests share: one thread, no telemetry, Hypothesis settings and one tiny cube."""

from __future__ import annotations

import os

# Set before torch and numba are loaded, and inherited by child processes: on a shared machine two
# threads of one test wait for those of its neighbours.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import datetime
from pathlib import Path

import pytest
from hypothesis import settings

# The first example of a test may compile a numba kernel or import torch, so that no deadline holds.
settings.register_profile("sifscale", deadline=None, max_examples=30)
settings.load_profile("sifscale")


@pytest.fixture(scope="session")
def tiny_cube_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated cube, only to be read: 3 composites of 48 x 48 native cells of 4 km, fine factor 4."""
    # Imported here, so that tests that need no cube start without xarray.
    from sifscale.cube import write_cube
    from sifscale.grid import Grid
    from sifscale.sources.osse import simulate

    height, width, factor, pixel_m = 48, 48, 4, 4000.0
    west_m, north_m, crs = -60_000.0, 2_850_000.0, "EPSG:5070"
    days = datetime.timedelta(days=16)
    starts = [datetime.date(2019, 5, 9) + i * days for i in range(3)]
    native, fine = simulate(
        height_px=height,
        width_px=width,
        pixel_m=pixel_m,
        fine_factor=factor,
        periods=[(start, start + days - datetime.timedelta(days=1)) for start in starts],
        seed=2019,
        sounding_noise=0.4,
        soundings_per_cell=12.0,
        missing_share=0.02,
        west_m=west_m,
        north_m=north_m,
        crs=crs,
        place="minnesota",
    )
    fine["land_cover"] = fine["land_cover"].expand_dims(sample=fine.sizes["sample"])
    grid = Grid(crs, west_m, north_m, pixel_m, pixel_m, height, width)
    path = tmp_path_factory.mktemp("tiny") / "tiny.zarr"
    attrs = {"window": "tiny", "target": "sif", "input_files": "{}"}
    write_cube(path, native, grid, fine, grid.refine(factor), attrs)
    return path
