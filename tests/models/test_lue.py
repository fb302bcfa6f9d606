"""The light-use-efficiency model against its formula in numpy: what coarse cells alone tell, and what they do not."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from sifscale.datamodule import Scaler
from sifscale.models.lue import AMPLITUDES, SMALLEST_INDEX, LightUse
from sifscale.models.regression import Fields, Fitted

Field = NDArray[np.float64]
CHANNELS = ("coarse", "lst", "nirv", "et")
SCALER = Scaler((0.0, 300.0, 0.3, 2.5), (1.0, 8.0, 0.2, 1.5), 0.7, 0.4)
FACTOR = 3
TRUTH = {"b1": 3.0, "b2": 1.2, "b3": 1.5, "b4": 2.0, "b5": 297.0, "b6": 9.0}
FACTORS = [("et", "lst"), ("et", None), (None, "lst"), (None, None)]


def bands(shape: tuple[int, ...], seed: int) -> dict[str, Field]:
    rng = np.random.default_rng(seed)
    ranges = {"coarse": (0, 1), "lst": (285, 315), "nirv": (0.05, 0.9), "et": (0, 5)}
    return {name: rng.uniform(*ranges[name], shape) for name in CHANNELS}


def by_hand(values: dict[str, Field], b: dict[str, float], et: str | None, lst: str | None) -> Field:
    sif = b["b1"] * np.maximum(values["nirv"], SMALLEST_INDEX) ** b["b2"]
    if et:
        sif = sif / (1 + np.exp(b["b3"] * (b["b4"] - values["et"])))
    if lst:
        sif = sif * np.exp(-0.5 * ((values["lst"] - b["b5"]) / b["b6"]) ** 2)
    return sif


def on_cells(field: Field) -> Field:
    """Block means of (..., H, W), where the last block may be cut."""
    height, width = field.shape[-2:]
    down, across = range(0, height, FACTOR), range(0, width, FACTOR)
    rows = [[field[..., y : y + FACTOR, x : x + FACTOR].mean(axis=(-2, -1)) for x in across] for y in down]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def on_pixels(cells: Field, like: Field) -> Field:
    repeated: Field = cells.repeat(FACTOR, -2).repeat(FACTOR, -1)
    return repeated[..., : like.shape[-2], : like.shape[-1]]


def fields(values: dict[str, Field], coarse: Field) -> Fields:
    """What the task would make of physical values (B, H, W); the target is NaN, all pixels count."""
    layers = [(values[n] - o) / s for n, o, s in zip(CHANNELS, SCALER.offset, SCALER.scale, strict=True)]
    normal = torch.from_numpy((coarse - SCALER.target_offset) / SCALER.target_scale)[:, None].float()
    counted = torch.ones_like(normal, dtype=torch.bool)
    predictors = torch.from_numpy(np.stack(layers, axis=1)).float()
    return Fields(predictors, normal, torch.full_like(normal, torch.nan), counted)


def model(et: str | None = "et", lst: str | None = "lst", factor: int = FACTOR) -> LightUse:
    return LightUse(
        in_channels=len(CHANNELS),
        factor=factor,
        vegetation="nirv",
        evapotranspiration=et,
        temperature=lst,
        channels=CHANNELS,
        scaler=SCALER,
    )


def known(et: str | None = "et", lst: str | None = "lst") -> LightUse:
    """A model with the true coefficients."""
    found = model(et, lst)
    found.coefficients.copy_(torch.tensor([TRUTH[name] for name in found.names]))
    return found


def physical(found: LightUse, part: Fields) -> Field:
    output = found(part.predictors, part.coarse)[:, 0].numpy()
    return np.asarray(output, dtype=np.float64) * SCALER.target_scale + SCALER.target_offset


def scene(seed: int = 0, et: str | None = "et", lst: str | None = "lst") -> Fields:
    """Coarse SIF as the true coefficients give it from the block means of the bands."""
    values = bands((4, 24, 24), seed)
    means = {name: on_cells(band) for name, band in values.items()}
    return fields(values, on_pixels(by_hand(means, TRUTH, et, lst), values["lst"]))


@pytest.mark.parametrize(("et", "lst"), FACTORS)
def test_known_coefficients_are_found_again_from_coarse_cells(et: str | None, lst: str | None) -> None:
    found = model(et, lst)
    assert isinstance(found, Fitted)
    figures = found.fit([scene(0, et, lst), scene(1, et, lst)], [], seed=0)
    assert figures["cells"] == 2 * 4 * 64
    assert figures["rmse"] < 1e-5
    np.testing.assert_allclose([figures[name] for name in found.names], [TRUTH[n] for n in found.names], rtol=1e-3)
    np.testing.assert_allclose(found.coefficients.numpy(), [figures[name] for name in found.names], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_with_noise_it_finds_what_a_search_from_the_truth_finds(seed: int) -> None:
    values = bands((8, 24, 24), seed)
    means = {name: on_cells(band) for name, band in values.items()}
    sif = by_hand(means, TRUTH, "et", "lst")
    sif += np.random.default_rng(seed).normal(0, 0.1, sif.shape)

    def formula(_: Field, *b: float) -> Field:
        return by_hand(means, dict(zip(TRUTH, b, strict=True)), "et", "lst").ravel()

    wanted, _ = curve_fit(formula, np.arange(sif.size), sif.ravel(), list(TRUTH.values()))
    figures = model().fit([fields(values, on_pixels(sif, values["lst"]))], [], seed=0)
    np.testing.assert_allclose([figures[name] for name in TRUTH], wanted, rtol=0.01)
    assert figures["rmse"] == pytest.approx(0.1, rel=0.1)


def test_it_fits_the_amplitude_of_each_crop_and_nothing_else_of_it() -> None:
    values = bands((3, 12, 15), 2)
    true = by_hand(values, TRUTH, "et", "lst")
    rng = np.random.default_rng(3)
    cells = rng.normal(0.6, 0.5, on_cells(true).shape)
    means = on_cells(true)
    amplitude = (cells * means).sum(axis=(1, 2)) / (means**2).sum(axis=(1, 2))
    wanted = np.clip(amplitude, *AMPLITUDES)[:, None, None] * true
    np.testing.assert_allclose(physical(known(), fields(values, on_pixels(cells, true))), wanted, rtol=1e-4, atol=1e-5)


@given(
    st.sampled_from(FACTORS),
    st.integers(1, 3),
    st.integers(1, 14),
    st.integers(1, 14),
    st.floats(-3, 20),
    st.integers(0, 99),
)
def test_a_field_of_its_own_is_given_back_times_an_amplitude_within_bounds(
    roles: tuple[str | None, str | None], batch: int, height: int, width: int, amplitude: float, seed: int
) -> None:
    values = bands((batch, height, width), seed)
    true = by_hand(values, TRUTH, *roles)
    part = fields(values, on_pixels(amplitude * on_cells(true), true))
    found = physical(known(*roles), part)
    assert found.shape == (batch, height, width)
    np.testing.assert_allclose(found, np.clip(amplitude, *AMPLITUDES) * true, rtol=1e-3, atol=1e-4)


def test_neither_the_target_nor_pixels_that_do_not_count_are_read() -> None:
    part = scene()
    rng = torch.Generator().manual_seed(0)
    counted = torch.rand(part.counted.shape, generator=rng) < 0.8
    seen = replace(part, counted=counted, target=torch.randn(part.target.shape, generator=rng))
    blind = replace(
        seen, predictors=torch.where(counted, part.predictors, 99.0), target=torch.full_like(part.target, torch.nan)
    )
    assert model().fit([seen], [], seed=0) == model().fit([blind], [part], seed=1)


def test_a_cell_is_learnt_from_if_half_of_its_pixels_count() -> None:
    part = scene()
    counted = torch.zeros_like(part.counted)
    counted[0, :, :, :12] = True  # 32 cells whole
    counted[1, :, 0::3], counted[1, :, 1::3, 0::3] = True, True  # 4 of 9 pixels
    counted[2, :, 0::3], counted[2, :, 1::3, :12] = True, True  # 6 of 9 pixels in 32 cells, 3 of 9 in the others
    assert model().fit([replace(part, counted=counted)], [], seed=0)["cells"] == 64


def test_a_training_part_with_fewer_cells_than_coefficients_is_refused() -> None:
    part = scene()
    counted = torch.zeros_like(part.counted)
    counted[0, :, :3, :15] = True
    with pytest.raises(ValueError, match=r"at least 6 coarse cells .* \(found 5 cells\)"):
        model().fit([replace(part, counted=counted)], [], seed=0)
    with pytest.raises(ValueError, match=r"at least 2 coarse cells .* \(found 0 cells\)"):
        model(None, None).fit([], [], seed=0)


@pytest.mark.parametrize("name", ["nirv", "et", "lst", "all"])
def test_a_constant_band_gives_a_finite_map(name: str) -> None:
    part = scene()
    names = CHANNELS if name == "all" else (name,)
    for index in map(CHANNELS.index, names):
        part.predictors[:, index] = 0.0  # as a gap is, and as a constant band is after normalisation
    found = model()
    found.fit([part], [], seed=0)
    output = found(part.predictors, part.coarse)
    assert output.isfinite().all()
    if name == "all":
        assert float(output.std(dim=(1, 2, 3)).max()) < 1e-5


def test_coarse_sif_below_zero_and_an_index_below_zero_give_a_finite_map() -> None:
    part = scene()
    part.predictors[..., CHANNELS.index("nirv"), :, :] -= 3.0
    found = model()
    found.fit([replace(part, coarse=-part.coarse - 5)], [], seed=0)
    assert np.isfinite(physical(found, part)).all()


def test_before_the_fit_sif_goes_as_the_vegetation_index() -> None:
    values = bands((2, 9, 9), 4)
    part = fields(values, on_pixels(2 * on_cells(values["nirv"]), values["nirv"]))
    np.testing.assert_allclose(physical(model(None), part), 2 * values["nirv"], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_restores_the_coefficients() -> None:
    part, found = scene(), model()
    found.fit([part], [], seed=0)
    file = io.BytesIO()
    torch.save(found.state_dict(), file)
    file.seek(0)
    restored = model()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(restored(part.predictors, part.coarse), found(part.predictors, part.coarse))
    assert not list(found.parameters())


def test_a_missing_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="lue needs the channels ndvi, lst_day, found coarse, lst, nirv, et"):
        LightUse(
            in_channels=4,
            factor=3,
            vegetation="ndvi",
            evapotranspiration=None,
            temperature="lst_day",
            channels=CHANNELS,
            scaler=SCALER,
        )
