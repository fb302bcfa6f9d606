"""The NIRv ratio against a loop over blocks in physical values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sifscale.datamodule import Scaler
from sifscale.models.ratio import NIRvRatio

Field = NDArray[np.float64]
CHANNELS = ("coarse", "red", "nir", "ndvi", "nirv")
SCALER = Scaler((0.5, 0.1, 0.3, 0.4, 0.2), (0.3, 0.05, 0.1, 0.2, 0.1), 0.7, 0.4)


def scene(height: int, width: int, factor: int, seed: int) -> tuple[dict[str, Field], Field]:
    """Bands that belong together, with gaps, and a coarse field that is constant in each block."""
    rng = np.random.default_rng(seed)
    red, nir = rng.uniform(0.02, 0.2, (height, width)), rng.uniform(0.1, 0.5, (height, width))
    red[rng.random(red.shape) < 0.2] = np.nan
    ndvi = (nir - red) / (nir + red)
    blocks = rng.normal(0.7, 0.4, (-(-height // factor), -(-width // factor)))
    coarse = np.kron(blocks, np.ones((factor, factor)))[:height, :width]
    return {"coarse": coarse, "red": red, "nir": nir, "ndvi": ndvi, "nirv": ndvi * nir}, coarse


def predicted(names: tuple[str, ...], bands: dict[str, Field], coarse: Field, factor: int, floor: float) -> Field:
    """What the model says to normalised values, brought back to physical ones."""
    index = [CHANNELS.index(name) for name in names]
    scaler = Scaler(
        tuple(SCALER.offset[i] for i in index), tuple(SCALER.scale[i] for i in index), 0.7, 0.4
    )
    model = NIRvRatio(in_channels=len(names), factor=factor, channels=names, scaler=scaler, floor=floor)
    layers = [(bands[n] - o) / s for n, o, s in zip(names, scaler.offset, scaler.scale, strict=True)]
    predictors = torch.from_numpy(np.nan_to_num(np.stack(layers)))[None]
    found = model(predictors, torch.from_numpy((coarse - 0.7) / 0.4)[None, None])
    return np.asarray(found[0, 0]) * 0.4 + 0.7


def by_hand(nirv: Field, coarse: Field, factor: int, floor: float) -> Field:
    wanted = coarse.copy()
    for y in range(0, nirv.shape[0], factor):
        for x in range(0, nirv.shape[1], factor):
            at = np.s_[y : y + factor, x : x + factor]
            known = np.isfinite(nirv[at])
            if known.any():
                mean = nirv[at][known].mean()
                wanted[at] = np.where(known, coarse[at] * nirv[at] / max(mean, floor), coarse[at])
    return wanted


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 5), st.sampled_from([1e-3, 0.15]), st.integers(0, 99))
def test_it_is_coarse_times_nirv_over_its_block_mean(
    height: int, width: int, factor: int, floor: float, seed: int
) -> None:
    bands, coarse = scene(height, width, factor, seed)
    wanted = by_hand(bands["nirv"], coarse, factor, floor)
    for names in (("coarse", "nirv"), ("nir", "ndvi"), ("red", "nir")):
        np.testing.assert_allclose(predicted(names, bands, coarse, factor, floor), wanted, atol=1e-9)


def test_a_block_without_vegetation_is_not_divided_by_nothing() -> None:
    bands, coarse = scene(6, 6, 3, 1)
    bands["nirv"] = np.full((6, 6), 1e-6)
    found = predicted(("coarse", "nirv"), bands, coarse, 3, 0.01)
    assert np.abs(found).max() < 1e-3 * np.abs(coarse).max()


def test_channels_that_do_not_give_nirv_and_a_floor_of_zero_are_refused() -> None:
    one = Scaler((0.0,), (1.0,), 0.0, 1.0)
    with pytest.raises(ValueError, match="needs the channels nirv or ndvi and nir or red and nir, found evi"):
        NIRvRatio(in_channels=1, factor=3, channels=("evi",), scaler=one, floor=0.01)
    with pytest.raises(ValueError, match="floor must be positive, found 0"):
        NIRvRatio(in_channels=1, factor=3, channels=("nirv",), scaler=one, floor=0)
