"""Steps between blocks are found among slopes, gaps and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sifscale.block_steps import LEAST_FACTOR, edge_values, steps


def sloped(factor: int) -> torch.Tensor:
    y, x = torch.arange(6 * factor).double(), torch.arange(7 * factor).double()
    return (0.3 * x - 0.7 * y[:, None])[None, None]


@pytest.mark.parametrize("factor", [4, 5, 10])
def test_a_slope_has_no_steps(factor: int) -> None:
    field = sloped(factor)
    found = steps(*edge_values(field, torch.ones_like(field, dtype=torch.bool), factor))
    np.testing.assert_allclose(found, 0, atol=1e-9)


def test_a_single_step_is_found_also_where_pixels_are_missing() -> None:
    field, factor = sloped(4), 4
    field[..., 8:12, 12:16] += 5
    valid = torch.tensor(np.random.default_rng(0).random(field.shape) < 0.8)
    field[~valid] = torch.nan
    found = steps(*edge_values(field, valid, factor))[0, 0]
    found = found - found.median()
    assert found.argmax() == 2 * 7 + 3 and 4 < found[2, 3] <= 5.1
    assert found.flatten().sort().values[-2] < 1.5


def test_a_border_without_a_pair_of_pixels_says_nothing() -> None:
    field = sloped(4)
    valid = torch.ones_like(field, dtype=torch.bool)
    valid[..., :4, 4] = False
    _, known = edge_values(field, valid, 4)
    assert known[0, :, 0, 1].tolist() == [1, 1, 0, 1] and known[0, :, 0, 0].tolist() == [1, 1, 1, 1]


def test_blocks_too_small_to_tell_a_step_from_a_slope_have_none() -> None:
    field = torch.rand(1, 1, 9, 12, dtype=torch.float64)
    for factor in range(1, LEAST_FACTOR):
        edges, known = edge_values(field, torch.ones_like(field, dtype=torch.bool), factor)
        assert not known.any() and not steps(edges, known).any()
