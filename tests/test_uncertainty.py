"""Error bars: closed forms against integrals, calibration against brute force and on exchangeable data, whole runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from sifscale.models.ensemble import mean_of
from sifscale.task import DownscalingTask
from sifscale.uncertainty import (
    SPREAD_SUMS,
    Calibration,
    Spread,
    calibrate,
    crps,
    error_bars,
    normal_half_width,
    outputs,
)

if TYPE_CHECKING:
    from conftest import Workplace

KINDS = ("constant", "ensemble", "mc_dropout", "heteroscedastic", "quantile")


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def fields(seed: int, members: int, channels: int) -> Tensor:
    """Predictions (members, 2, channels, 6, 5), widths above 0."""
    raw = torch.randn((members, 2, channels, 6, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw[:, :, 1:] = raw[:, :, 1:].abs() + 0.1
    return raw


def bars_and_truth(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions (n,), uncalibrated bars (n, 3) of differing width, and targets that miss by about twice as much."""
    rng = np.random.default_rng(seed)
    sd = rng.uniform(0.2, 2, count)
    prediction = rng.normal(size=count)
    bars = np.stack([sd, 1.5 * sd, 0.8 * sd], axis=1)
    return tuple(map(torch.from_numpy, (prediction, bars, prediction + 2 * sd * rng.normal(size=count))))  # type: ignore[return-value]  # mypy takes it for a tuple of any length


@given(st.floats(-6, 6), st.floats(0.05, 3), st.floats(0.05, 3))
def test_the_crps_is_the_integral_that_it_is_defined_by(departure: float, lower: float, upper: float) -> None:
    both = lower + upper

    def distribution(t: float) -> float:
        side = lower if t < 0 else upper
        tail = 2 * side / both * float(stats.norm.cdf(-abs(t) / side))
        return tail if t < 0 else 1 - tail

    def squared(t: float) -> float:
        return (distribution(t) - (t >= departure)) ** 2

    knots = sorted({-60.0, min(departure, 0.0), max(departure, 0.0), 60.0})
    expected = sum(
        integrate.quad(squared, a, b, limit=200)[0] for a, b in zip(knots[:-1], knots[1:], strict=True)
    )
    assert float(crps(number(departure), number(lower), number(upper))) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_with_equal_sd_the_crps_is_that_of_a_normal_distribution(departure: float, sd: float) -> None:
    z = departure / sd
    normal = sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    found = float(crps(number(departure), number(sd), number(sd)))
    assert found == pytest.approx(normal, rel=1e-9, abs=1e-12 * abs(departure))


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 0.0), (0.0, 1e-300), (0.0, 2.0)])
def test_without_width_the_crps_is_the_absolute_error(lower: float, upper: float) -> None:
    found = float(crps(number(-1.5), number(lower), number(upper)))
    assert math.isfinite(found) and found >= 1.5
    if upper < 1:
        assert found == 1.5


@given(st.integers(0, 10**6), st.integers(25, 120), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_the_factor_of_the_interval_is_the_smallest_that_covers_enough(seed: int, count: int, level: float) -> None:
    prediction, bars, target = bars_and_truth(seed, count)
    wanted = math.ceil((count + 1) * level)
    found = calibrate(level, prediction, bars, target).interval

    def covered(factor: float) -> int:
        low, high = prediction - factor * bars[:, 1], prediction + factor * bars[:, 2]
        return int(((target >= low) & (target <= high)).sum())

    assert covered(found * (1 + 1e-9)) == wanted and covered(found * (1 - 1e-9)) == wanted - 1


def test_an_exchangeable_pixel_is_covered_as_often_as_the_theorem_says() -> None:
    level, count, draws = 0.9, 29, 4000  # ceil(30 x 0.9) / 30 is 0.9 exactly: the bound is met
    prediction, bars, target = bars_and_truth(0, (count + 1) * draws)
    inside = 0
    for start in range(0, len(target), count + 1):
        some, last = slice(start, start + count), start + count
        factor = calibrate(level, prediction[some], bars[some], target[some]).interval
        low, high = (prediction[last] + sign * factor * bars[last, side] for sign, side in ((-1, 1), (1, 2)))
        inside += bool(low <= target[last] <= high)
    assert inside / draws == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / draws))


@given(st.integers(0, 10**6))
def test_calibrated_bars_cover_and_spread_as_errors_do_where_they_were_calibrated(seed: int) -> None:
    prediction, bars, target = bars_and_truth(seed, 500)
    found = calibrate(0.9, prediction, bars, target)
    interval = found.interval * (1 + 1e-9)
    right = bars * torch.tensor([found.sd, interval, interval], dtype=torch.float64)
    shape = (1, 1, 20, 25)
    spread = Spread.of(
        prediction.reshape(shape), right.T.reshape(1, 3, 20, 25), target.reshape(shape),
        torch.ones(shape, dtype=torch.bool), found.edges,
    )  # fmt: skip
    scores = spread.finish()
    assert scores["spread_skill"] == pytest.approx(1)
    assert scores["coverage"] == math.ceil(501 * 0.9) / 500
    count, standard_error, _ = spread.by_bin()
    assert count.tolist() == pytest.approx([50] * 10, abs=1) and bool((standard_error.diff() > 0).all())


def test_the_edges_are_deciles() -> None:
    prediction, bars, target = bars_and_truth(1, 1001)
    found = calibrate(0.9, prediction, bars, target)
    expected = np.quantile(bars[:, 0].numpy() * found.sd, np.arange(1, 10) / 10)
    np.testing.assert_allclose(found.edges, expected, rtol=1e-12)


def test_what_cannot_be_calibrated_is_refused_in_one_clear_line() -> None:
    prediction, bars, target = bars_and_truth(0, 100)
    assert calibrate(0.9, prediction[:9], bars[:9], target[:9]).interval > 0
    with pytest.raises(ValueError, match="uncertainty.level: needs 9 validation pixels or more for 0.9, found 8"):
        calibrate(0.9, prediction[:8], bars[:8], target[:8])
    bars[:12] = 0
    with pytest.raises(ValueError, match="its spread is 0 at 12 % of the validation pixels, too many to calibrate"):
        calibrate(0.9, prediction, bars, target)
    with pytest.raises(ValueError, match="predictions of the validation part are not finite"):
        calibrate(0.9, prediction.log(), bars, target)


def test_an_exact_prediction_needs_no_width() -> None:
    exact, bars = torch.ones(50), torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    bars[::5] = 0  # a fifth is sure of itself, and right
    found = calibrate(0.9, exact, bars, exact)
    assert (found.sd, found.interval) == (0, 0)


@pytest.mark.parametrize("name", ["ensemble", "mc_dropout"])
def test_spread_is_the_standard_deviation_of_the_conserved_members(name: str) -> None:
    raw, conserved = fields(0, 5, 1), fields(1, 5, 1)
    found = error_bars({"name": name, "level": 0.9}, raw, conserved, None)
    sd = conserved.numpy().std(axis=0, ddof=1)
    half = stats.norm.ppf(0.95)
    np.testing.assert_allclose(found, np.concatenate([sd, half * sd, half * sd], axis=1), rtol=1e-12)
    with pytest.raises(ValueError, match=f"uncertainty={name} needs 2 predictions or more, found 1"):
        error_bars({"name": name, "level": 0.9}, raw[:1], conserved[:1], None)


@pytest.mark.parametrize("members", [1, 4])
def test_learned_variances_are_those_of_the_mixture(members: int) -> None:
    raw, conserved = fields(0, members, 2), fields(1, members, 1)
    found = error_bars({"name": "heteroscedastic", "level": 0.9, "beta": 0.5}, raw, conserved, None)
    second_moment = (raw[:, :, 1:] ** 2 + conserved**2).mean(dim=0)
    torch.testing.assert_close(found[:, :1] ** 2, second_moment - conserved.mean(dim=0) ** 2)


def test_learned_distances_are_kept_apart_and_give_the_sd_of_a_normal_distribution() -> None:
    raw, conserved = fields(0, 3, 3), fields(1, 3, 1)
    found = error_bars({"name": "quantile", "level": 0.8}, raw, conserved, None)
    torch.testing.assert_close(found[:, 1:], raw[:, :, 1:].mean(dim=0))
    torch.testing.assert_close(found[:, :1] * normal_half_width(0.8) * 2, found[:, 1:].sum(dim=1, keepdim=True))


@pytest.mark.parametrize("name", KINDS)
def test_bars_are_scaled_by_the_calibration_and_do_not_depend_on_how_a_field_is_cut(name: str) -> None:
    chosen = {"name": name, "level": 0.9}
    raw = torch.randn((16, 1, outputs(chosen), 67, 53), generator=torch.Generator().manual_seed(0)).abs() + 0.1
    conserved = raw[:, :, :1].double() * 1.1
    plain = error_bars(chosen, raw, conserved, None)
    scaled = error_bars(chosen, raw, conserved, Calibration(2.0, 3.0, ()))
    assert plain.shape == (1, 3, 67, 53) and bool((plain > 0).all())
    torch.testing.assert_close(scaled, plain * torch.tensor([2.0, 3.0, 3.0])[:, None, None])
    part = (..., slice(5, 38), slice(3, 20))
    assert torch.equal(error_bars(chosen, raw[part], conserved[part], None), plain[part])
    assert torch.equal(mean_of(conserved[part].contiguous()), mean_of(conserved)[part])


@given(st.integers(0, 10**6), st.integers(1, 59))
def test_sums_of_parts_add_up_to_those_of_the_whole_and_to_brute_force(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, target = (torch.from_numpy(rng.normal(size=(60, 1, 2, 2))) for _ in range(2))
    bars = torch.from_numpy(rng.uniform(0.1, 2, (60, 3, 2, 2)))
    scored = torch.from_numpy(rng.random((60, 1, 2, 2)) < 0.7)
    for field in (prediction, target):
        field[~scored] = math.nan
    edges = tuple(np.linspace(0.3, 1.8, 9))
    whole = Spread.of(prediction, bars, target, scored, edges)
    parts = [
        Spread.of(prediction[part], bars[part], target[part], scored[part], edges)
        for part in (slice(cut), slice(cut, None))
    ]
    torch.testing.assert_close((parts[0] + parts[1]).values, whole.values)
    assert torch.equal(Spread.from_dict(json.loads(json.dumps(whole.to_dict()))).values, whole.values)
    p, y, (sd, low, high) = prediction[scored], target[scored], bars.movedim(1, 0)[:, scored[:, 0]]
    found = whole.finish()
    assert found["coverage"] == pytest.approx(float(((y >= p - low) & (y <= p + high)).double().mean()))
    assert found["coverage_below"] == pytest.approx(float((y < p - low).double().mean()))
    assert found["interval_width"] == pytest.approx(float((low + high).mean()))
    narrow, wide = (2 * sd * side / (low + high) for side in (low, high))
    assert found["crps"] == pytest.approx(float(crps(y - p, narrow, wide).mean()))
    assert found["spread_skill"] == pytest.approx(float((sd.square().mean() / (p - y).square().mean()).sqrt()))
    bins = np.digitize(sd.numpy(), edges, right=True)
    assert whole.values[SPREAD_SUMS.index("n")].tolist() == np.bincount(bins, minlength=10).tolist()


def test_bars_of_no_width_are_scored_as_a_prediction_without_them() -> None:
    prediction, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 1.0], [-2.0, 0.0]]]])
    found = Spread.of(prediction, torch.zeros(1, 3, 2, 2), target, torch.ones(1, 1, 2, 2) > 0, (0.0,) * 9).finish()
    assert found == {
        "coverage": 0.5, "coverage_below": 0.25, "interval_width": 0, "crps": 0.75, "spread_skill": 0
    }  # fmt: skip
    with pytest.raises(ValueError, match="no valid pixel was scored"):
        Spread.zero().finish()


def test_a_sweep_of_uncertainty_scores_bars_and_keeps_their_calibration(workplace: Workplace, tmp_path: Path) -> None:
    quick = ("evaluation.ridge=null", "evaluation.details=false", "trainer.epochs=1", "crop.number=4")
    words = ("uncertainty=none,constant,quantile", f"hydra.sweep.dir={tmp_path}", *quick)
    workplace.main("-m", *workplace.overrides(*words))
    metrics = [json.loads((tmp_path / str(job) / "metrics.json").read_text()) for job in range(3)]
    scores = ("coverage", "interval_width", "crps", "spread_skill")
    assert not any(name.endswith(score) for name in metrics[0] for score in scores)
    assert metrics[0] == {name: value for name, value in metrics[1].items() if not name.endswith(scores)}
    kept: list[dict[str, Any]] = [
        torch.load(tmp_path / str(job) / "checkpoints" / "best.ckpt", weights_only=True) for job in range(3)
    ]
    assert "calibration" not in kept[0] and "calibration" not in kept[1]["state_dict"]
    for job in (1, 2):
        for view in ("test", "truth"):
            found = [metrics[job][f"{view}/{score}"] for score in scores]
            assert 0.4 < found[0] <= 1 and found[1] > 0 and 0 < found[2] < metrics[job][f"{view}/mae"] and found[3] > 0
        task = DownscalingTask.load_from_checkpoint(tmp_path / str(job) / "checkpoints" / "best.ckpt")
        assert task.calibration is not None and task.calibration == Calibration(**kept[job]["calibration"])
        sums = json.loads((tmp_path / str(job) / "spread.json").read_text())
        assert Spread.from_dict(sums["truth"]).finish()["coverage"] == metrics[job]["truth/coverage"]
