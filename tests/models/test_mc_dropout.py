"""Dropout in prediction: as in torch while training, the same passes for every batch and every cut of a field."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sifscale.models.mc_dropout import ChannelDropout, McDropout
from sifscale.models.unet import UNet


def make_unet(dropout: float, outputs: int = 1) -> UNet:
    torch.manual_seed(0)
    return UNet(in_channels=2, factor=2, widths=(4, 8), bottleneck=8, norm="none", upsampling="bilinear",
                upsampling_relu=False, dropout=dropout, residual=False, outputs=outputs)  # fmt: skip


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 16, 16, generator=generator), torch.zeros(batch, 1, 16, 16)


@given(st.integers(0, 10**6), st.floats(0.05, 0.9))
def test_in_training_it_is_torchs_own_dropout_of_channels(seed: int, share: float) -> None:
    field = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    ours = ChannelDropout(6, share)(field)
    torch.manual_seed(seed)
    assert torch.equal(ours, nn.Dropout2d(share)(field))


def test_in_evaluation_it_changes_nothing_but_what_a_pass_drops() -> None:
    field = torch.ones(2, 400, 3, 3)
    dropout = ChannelDropout(400, 0.25).eval()
    assert dropout(field) is field
    dropout.keep(torch.Generator().manual_seed(0))
    found = dropout(field)
    torch.testing.assert_close(found.unique(), torch.tensor([0, 1 / 0.75]))
    assert float(found.mean()) == pytest.approx(1, abs=0.1)
    assert torch.equal(found, found[:1, :, :1, :1].expand_as(found)), "the same channels everywhere"
    dropout.keep(None)
    assert dropout(field) is field


def test_passes_differ_and_are_the_same_whatever_the_batch_and_the_time() -> None:
    model = McDropout(make_unet(0.3, outputs=2), 4).eval()
    with torch.inference_mode():
        each = model.each(*inputs())
        assert each.shape == (4, 3, 2, 16, 16)
        assert not any(torch.equal(each[0], other) for other in each[1:])
        assert torch.equal(model.each(*inputs()), each), "a second time"
        alone = torch.cat([model.each(*(field[[i]] for field in inputs())) for i in range(3)], dim=1)
        torch.testing.assert_close(alone, each, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model(*inputs()), each.mean(dim=0))
        plain = model.network(*inputs())
    assert torch.equal(plain, make_unet(0.0, outputs=2).eval()(*inputs())), "no pass leaves its choice behind"


def test_a_pass_that_fails_leaves_nothing_dropped() -> None:
    model = McDropout(make_unet(0.3), 4).eval()
    with pytest.raises(RuntimeError):
        model.each(inputs()[0][:, :1], inputs()[1])
    assert torch.equal(model.network(*inputs()), make_unet(0.0)(*inputs()))


def test_training_takes_one_pass() -> None:
    model = McDropout(make_unet(0.3), 4).train()
    assert model.each(*inputs()).shape == (1, 3, 1, 16, 16)


@pytest.mark.parametrize(("dropout", "passes"), [(0.3, 1), (0.0, 4)])
def test_without_dropout_or_with_one_pass_there_is_no_spread_and_it_is_refused(dropout: float, passes: int) -> None:
    with pytest.raises(ValueError, match="mc_dropout needs 2 passes or more and a network with dropout above 0, found"):
        McDropout(make_unet(dropout), passes)


def test_weights_have_the_names_that_they_had_without_it() -> None:
    assert list(make_unet(0.3).state_dict()) == list(make_unet(0.0).state_dict())
