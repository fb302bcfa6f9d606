"""What is read of a cube by parts against the feature cube that training makes of it in one piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sifscale import features as feature_room
from sifscale.config import Coarse, ConfigError, Features
from sifscale.cube import Cube, open_cube
from sifscale.grid import block_repeat, fill_nearest
from sifscale.tile_fields import FieldSource, training_sections
from sifscale.tiles import padded_shape

TEXTURED: dict[str, object] = {
    "name": "all", "bands": ["coarse", "ndvi", "nir", "nirv", "coarse_evi"], "select": None, "legacy": None,
    "lbp": [
        {"source": "evi", "method": "uniform", "points": 16, "radius": 2.0, "encoding": "onehot"},
        {"source": "coarse", "method": "default", "points": 8, "radius": 1.0, "encoding": "bits"},
    ],
    "local_stats": {"bands": ["evi", "coarse_nir"], "window_px": 5},
}  # fmt: skip


def section(values: dict[str, object] = TEXTURED) -> Features:
    return Features.model_validate(values)


@pytest.fixture(scope="module")
def holed(tiny_cube_path: Path) -> Cube:
    """The tiny cube with clouds in SIF and MODIS, on odd sizes: 47 x 45 native cells of 4 x 4 fine ones.

    EVI has few values: in LBP the ties hang on last bits, and so on where a part begins.
    """
    cube = open_cube(tiny_cube_path)
    assert cube.fine is not None
    rng = np.random.default_rng(1)
    native, fine = cube.native.isel(y=slice(0, 47), x=slice(0, 45)), cube.fine.isel(y=slice(0, 188), x=slice(0, 180))
    sif = native["sif"].where(rng.random(native["sif"].shape) > 0.4)
    clouds = rng.random(fine["evi"].shape) > 0.05
    fine = fine.assign({name: fine[name].where(clouds) for name in ("evi", "nir", "red", "ndvi") if name in fine})
    native, fine = (bands.assign(evi=bands["evi"].round(1) * np.float32(0.7)) for bands in (native, fine))
    if "ndvi" not in fine:
        fine = fine.assign(ndvi=(fine["nir"] - fine["red"]) / (fine["nir"] + fine["red"]))
    return Cube(cube.path, native.assign(sif=sif), fine, cube.hash, cube.attrs)


PARTS = (
    (slice(0, 48), slice(36, 96)), (slice(24, 60), slice(0, 36)), (slice(36, 48), slice(12, 24)),
)  # fmt: skip


@pytest.mark.parametrize("method", ["block_mean", "moving_mean"])
@pytest.mark.parametrize("factor", [3, 4])
def test_parts_of_the_native_level_are_those_of_training(holed: Cube, factor: int, method: str) -> None:
    coarse = Coarse(method=method, factor=factor if method == "block_mean" else 3)  # type: ignore[arg-type]  # of two
    whole = feature_room.build(holed, section(), coarse, "sif")
    source = FieldSource(holed, section(), coarse, whole.names, "sif", fine=False)
    assert source.shape == whole.shape == (47, 45)
    expected = np.asarray(whole.predictors[1]), np.asarray(whole.coarse[1]), np.asarray(whole.valid[1])
    for rows, columns in PARTS:
        found = source.read(1, (rows, columns))
        height, width = (min(s.stop, n) - s.start for s, n in zip((rows, columns), expected[1].shape, strict=True))
        for ours, theirs in zip((found.predictors, found.coarse, found.observed), expected, strict=True):
            if height > 0 and width > 0:
                np.testing.assert_array_equal(ours[..., :height, :width], theirs[..., rows, columns])


@pytest.mark.parametrize("keep_truth", [True, False])
def test_parts_of_the_fine_level_are_those_of_the_application(holed: Cube, keep_truth: bool) -> None:
    assert holed.fine is not None
    coarse = Coarse(method="block_mean", factor=4)
    whole = feature_room.build(holed, section(), coarse, "sif", truth="sif_truth")
    bare = holed if keep_truth else Cube(holed.path, holed.native, holed.fine.drop_vars("sif_truth"), "", {})
    source = FieldSource(bare, section(), coarse, whole.names[::-1], "sif", fine=True)
    parts = [*PARTS, (slice(0, 188), slice(0, 180)), (slice(128, 192), slice(160, 192))]
    predictors, field = np.asarray(whole.predictors[2]), np.asarray(whole.coarse[2])
    for rows, columns in parts:
        found = source.read(2, (rows, columns))
        height, width = min(rows.stop, 188) - rows.start, min(columns.stop, 180) - columns.start
        np.testing.assert_array_equal(found.predictors[::-1, :height, :width], predictors[:, rows, columns])
        np.testing.assert_array_equal(found.coarse[:height, :width], field[rows, columns])
        assert np.isnan(found.predictors[:, height:]).all() and not found.observed[height:].any()
        assert np.isfinite(found.coarse).all()  # goes on into the padding
    observed = np.isfinite(holed.native["sif"].values[2]).repeat(4, 0).repeat(4, 1)
    np.testing.assert_array_equal(source.observed(2, (slice(0, 188), slice(0, 180))), observed)


def test_a_sample_without_sif_has_nothing_to_read(holed: Cube) -> None:
    empty = Cube(holed.path, holed.native.assign(sif=xr.full_like(holed.native["sif"], np.nan)), holed.fine, "", {})
    source = FieldSource(empty, section(), Coarse(method="block_mean", factor=4), ["nir"], "sif", fine=True)
    assert source.cells(0) is None and not source.has_sif(0)
    assert not source.observed(0, (slice(0, 8), slice(0, 8))).any()
    with pytest.raises(ValueError, match="sample 0 has no sif"):
        source.read(0, (slice(0, 8), slice(0, 8)))


def test_features_of_the_legacy_protocol_are_refused() -> None:
    legacy = {"difference": True, "lbp": True, "lbp_source": "coarse", "minmax_everything": True, "zero_gaps": True}
    with pytest.raises(ConfigError, match=r"^run: must not be from protocol=legacy, .* \(found features=all\)$"):
        training_sections(TEXTURED | {"legacy": legacy}, {"method": "block_mean", "factor": 2})


def test_a_padded_field_is_a_multiple_of_the_step() -> None:
    assert padded_shape((97, 173), 16) == (112, 176)


@settings(max_examples=40)
@given(
    share=st.sampled_from([0.002, 0.02, 0.3, 0.9]),
    top=st.integers(0, 40),
    left=st.integers(0, 50),
    size=st.integers(1, 30),
    seed=st.integers(0, 999),
)
def test_gaps_of_a_part_are_filled_as_those_of_the_whole(
    share: float, top: int, left: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sif = np.where(rng.random((1, 47, 53)) < share, rng.random((1, 47, 53)), np.nan).astype(np.float32)
    sif[0, rng.integers(47), rng.integers(53)] = 1.0
    native = xr.Dataset({"sif": (("sample", "y", "x"), sif), "nir": (("sample", "y", "x"), np.ones_like(sif))})
    fine = xr.Dataset({"nir": (("sample", "y", "x"), np.ones((1, 94, 106), np.float32))})
    plain = section({**TEXTURED, "bands": ["nir"], "lbp": [], "local_stats": None})
    cube, coarse = Cube(Path(), native, fine, "", {}), Coarse(method="block_mean", factor=2)
    source = FieldSource(cube, plain, coarse, ["nir"], "sif", fine=True)
    rows, columns = slice(2 * top, min(94, 2 * (top + size))), slice(2 * left, min(106, 2 * (left + size)))
    found = source.read(0, (rows, columns))
    whole = block_repeat(fill_nearest(sif[0]), 2, 94, 106)
    np.testing.assert_array_equal(found.coarse, whole[rows, columns])
    np.testing.assert_array_equal(found.observed, np.isfinite(sif[0]).repeat(2, 0).repeat(2, 1)[rows, columns])
