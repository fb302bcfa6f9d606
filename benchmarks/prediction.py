"""The peak memory of a map made by tiles, with the default U-Net; `tiles` has its time and bits beside the whole field.

    python benchmarks/prediction.py --memory 8192 [--core 1024]

Maps a field of that edge from a cube on disk (written in a process of its own) into a Zarr store, as predict.py does,
and prints the peak of the process: call it with several edges and compare.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import dask.array as da
import numpy as np
import torch
import xarray as xr
import yaml

from sifscale.config import PROJECT_ROOT, Coarse, Features, LbpFeature
from sifscale.cube import open_cube, write_cube
from sifscale.datamodule import Scaler
from sifscale.grid import Grid
from sifscale.lbp import channel_names
from sifscale.mapping import map_tiles
from sifscale.models.unet import UNet
from sifscale.processes import peak_memory_mb
from sifscale.products import Description, unfinished
from sifscale.task import DownscalingTask
from sifscale.task_spec import Optimisation, Origin, TaskSpec
from sifscale.tile_fields import FieldSource
from sifscale.tile_prediction import TilePredictor

FACTOR = 4
BANDS = ("coarse", "ndvi", "evi", "nir", "red")
LBP = LbpFeature(source="evi", method="uniform", points=8, radius=1.0, encoding="onehot")
FEATURES = Features(name="lbp", bands=BANDS, select=None, lbp=(LBP,), local_stats=None, legacy=None)
PLANES = channel_names(LBP.points, LBP.radius, LBP.method, LBP.encoding)
CHANNELS = (*BANDS, *(f"{name}({LBP.source})" for name in PLANES))


def predictor() -> TilePredictor:
    """The default U-Net with random weights."""
    model = yaml.safe_load((PROJECT_ROOT / "conf" / "model" / "unet.yaml").read_text())
    count = len(CHANNELS)
    origin = Origin({}, {}, {}, ((-9.0, 9.0),) * count, "", "native", "", "")
    scaler = Scaler((0.0,) * count, (1.0,) * count, 0.0, 1.0)
    spec = TaskSpec(model, CHANNELS, scaler, FACTOR, FACTOR, 32, "none", "sif", "1", 1, origin)
    task = DownscalingTask(asdict(spec), asdict(Optimisation("mse", "adam", 0.1, 0.0, "constant", 1)))
    assert isinstance(task.model, UNet)
    torch.nn.init.normal_(task.model.head.weight)  # they begin at 0
    return TilePredictor(task, conservation="none")


def write_example(path: Path, size: int) -> None:
    """A cube with fine bands of noise, written chunk by chunk."""
    grid = Grid("EPSG:5070", 0.0, 0.0, 4000.0, 4000.0, size // FACTOR, size // FACTOR)

    def bands(edge: int, names: tuple[str, ...]) -> xr.Dataset:
        random = da.random.default_rng(0)
        fields = {n: random.random((1, edge, edge), dtype=np.float32, chunks=(1, 256, 256)) for n in names}
        coords = {"time_start": ("sample", [np.datetime64("2019-06-10", "ns")]), "place": ("sample", ["here"])}
        return xr.Dataset({n: (("sample", "y", "x"), f) for n, f in fields.items()}, coords=coords)

    write_cube(path, bands(size // FACTOR, ("sif",)), grid, bands(size, BANDS[1:]), grid.refine(FACTOR), {})


def memory(size: int, core: int) -> None:
    """Peak memory of this process after a tiled map of one sample."""
    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("spawn").Process(target=write_example, args=(Path(folder) / "cube", size))
        writer.start()
        writer.join()
        cube = open_cube(Path(folder) / "cube")
        source = FieldSource(cube, FEATURES, Coarse(method="block_mean", factor=FACTOR), CHANNELS, "sif", fine=True)
        model = predictor()
        layout = model.layout(source.shape, core)
        described = Description("sif", "1", source.bands, model.dtype, layout.core_px, {})
        start = time.perf_counter()
        with unfinished(Path(folder) / "map.zarr", "benchmark", described) as made:
            map_tiles(model, source, layout, made, 1, True)
        peak = f"{peak_memory_mb():.0f} MB, {time.perf_counter() - start:.0f} s"
        print(f"{size} x {size} in tiles of {core}: peak {peak}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", type=int, default=1024)
    parser.add_argument("--memory", type=int, metavar="SIZE", required=True)
    options = parser.parse_args()
    memory(options.memory, options.core)
