"""What the tests of the simulation share: one simulated folder, and files as other libraries than ours see them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from pyhdf.SD import SD

from sifscale.grid import Grid
from sifscale.simulation import simulate_raw
from sifscale.simulation.world import Period

Array = NDArray[Any]
DEFAULTS: dict[str, Any] = {
    "grid": Grid("EPSG:5070", -60_000.0, 2_850_000.0, 4000.0, 4000.0, 24, 24),
    "factor": 4,
    "periods": [(datetime.date(2019, 6, 26), datetime.date(2019, 7, 11))],
    "seed": 7,
    "sounding_noise": 0.4,
    "cloudiness": 0.4,
    "fill_share": 0.02,
}


@dataclass(frozen=True)
class Osse:
    """A simulated folder of one composite (the first, where there are more)."""

    folder: Path
    grid: Grid
    period: Period

    @property
    def swaths(self) -> list[Path]:
        """TROPOSIF files, by day."""
        return sorted((self.folder / "troposif").iterdir())

    @property
    def granules(self) -> list[Path]:
        """MOD13A2 files, by day and tile."""
        return sorted((self.folder / "mod13a2").iterdir())

    @cached_property
    def soundings(self) -> dict[str, Array]:
        """All variables of all days, as h5py reads them."""
        days = [self.variables(path) for path in self.swaths]
        return {name: np.concatenate([day[name] for day in days]) for name in days[0]}

    @cached_property
    def layers(self) -> dict[str, Array]:
        """Data sets of the first granule, as stored."""
        return self.layers_of(self.granules[0])

    @cached_property
    def truth(self) -> xr.Dataset:
        """The truth of the composite."""
        with xr.open_dataset(min((self.folder / "truth").iterdir()), engine="h5netcdf") as dataset:
            return dataset.load()

    @staticmethod
    def variables(path: Path) -> dict[str, Array]:
        """Every variable of a netCDF-4 file by its name, as h5py reads it."""
        found: dict[str, Array] = {}

        def keep(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and not item.attrs.get("NAME", b"").startswith(b"This is a netCDF dim"):
                found[name.rsplit("/", 1)[-1]] = item[()]

        with h5py.File(path) as file:
            file.visititems(keep)
        return found

    @staticmethod
    def layers_of(path: Path) -> dict[str, Array]:
        """Every data set of a MOD13A2 granule by its short name, as stored."""
        file = SD(str(path))
        try:
            return {name.removeprefix("1 km 16 days "): file.select(name).get() for name in file.datasets()}
        finally:
            file.end()


def _simulate(folder: Path, **changes: Any) -> Osse:
    arguments = DEFAULTS | changes
    simulate_raw(folder, **arguments)
    return Osse(folder, arguments["grid"], arguments["periods"][0])


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Osse]:
    """Simulates into a new folder: the default world of 24 x 24 cells, but for the arguments that are given."""
    return _simulate


@pytest.fixture(scope="session")
def osse(tmp_path_factory: pytest.TempPathFactory) -> Osse:
    """The default world with soundings of 8 days, only to be read."""
    return _simulate(tmp_path_factory.mktemp("osse") / "raw", days_per_period=8)
