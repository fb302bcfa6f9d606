"""A search over tiny runs: it is judged by validation, prunes, survives a kill, and leaves a study file that runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sifscale.config import PROJECT_ROOT, ConfigError, validate
from sifscale.config.search_sections import SearchOptions
from sifscale.search import sampler_of_draw
from sifscale.search_results import beyond
from sifscale.search_space import search_space, words_of
from sifscale.trial import REASON, SearchTrial, open_storage

if TYPE_CHECKING:
    from conftest import Workplace

QUIET = (
    "evaluation.figures=false", "evaluation.details=false", "evaluation.ridge=null", "trainer.patience=null",
    "tracking.log_model=false", "tracking.system_metrics=false",
)  # fmt: skip
UNET = (
    "experiment=unet_search",
    "features=lbp",
    "model.widths=[4]",
    "model.bottleneck=4",
    "trainer.learning_rate=choice(0.01,1e-9)",
    "crop.size=choice(8,6)",
    "hydra.sweeper.seed=6",  # draws of each kind among four
    "hydra.sweeper.n_trials=4",
    "hydra.sweeper.median={startup_trials:1,warmup_epochs:0}",
)
RIDGE = ("model=ridge", "model.strengths=choice([0.001],[0.1],[10.0],[1000.0])", "hydra.sweeper.n_trials=3")


def command(place: Workplace, output: Path, name: str, *words: str) -> list[str]:
    """Words of a tiny search with a folder and an MLflow experiment of its own."""
    return [
        "-m", "hydra/sweeper=optuna", f"hydra.sweeper.study_name={name}",
        *place.overrides(*QUIET, f"paths.output={output}", f"tracking.experiment={name}", *words),
    ]  # fmt: skip


def trials(output: Path, name: str) -> list[FrozenTrial]:
    url = f"sqlite:///{output / 'search' / name / 'study.db'}"
    return optuna.load_study(study_name=name, storage=open_storage(url)).trials


def runs(place: Workplace, name: str) -> list[Run]:
    client = MlflowClient(tracking_uri=place.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])


def options(**changes: Any) -> SearchOptions:
    values = yaml.safe_load((PROJECT_ROOT / "conf" / "hydra" / "sweeper" / "optuna.yaml").read_text())
    return validate(values | changes, SearchOptions)


# --- a whole search -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of the shipped search made tiny: some of its trials are hopeless and some cannot be."""
    output = tmp_path_factory.mktemp("searched")
    workplace.main(*command(workplace, output, "unets", *UNET))
    return output


def test_every_trial_ends_with_a_value_or_a_reason(searched: Path) -> None:
    found = trials(searched, "unets")
    assert len(found) == 4
    pruned = [trial for trial in found if trial.state == TrialState.PRUNED and trial.intermediate_values]
    refused = [trial for trial in found if trial.state == TrialState.PRUNED and not trial.intermediate_values]
    done = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert done and pruned and refused
    assert len(done) + len(pruned) + len(refused) == 4
    assert all(trial.user_attrs[REASON].startswith("val/rmse ") for trial in pruned)
    assert all(trial.params["crop.size"] == 6 for trial in refused)
    assert all("crop.size: must be a multiple of" in trial.user_attrs[REASON] for trial in refused)


def test_trials_are_children_of_the_sweep_and_a_pruned_one_counts_nowhere(workplace: Workplace, searched: Path) -> None:
    found = {trial.number: trial for trial in trials(searched, "unets")}
    every = runs(workplace, "unets")
    (parent,) = (run for run in every if run.data.tags.get("sweep") == "parent")
    children = [run for run in every if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {int(run.data.tags["trial"]) for run in children} == {n for n in found if found[n].intermediate_values}
    for run in children:
        trial = found[int(run.data.tags["trial"])]
        tested = any(name.startswith("test/") for name in run.data.metrics)
        if trial.state == TrialState.COMPLETE:
            assert run.info.status == "FINISHED" and tested
            assert run.data.metrics["best/val/rmse"] == pytest.approx(trial.value, rel=1e-6)
        else:
            assert run.info.status == "KILLED" and not tested
            assert run.data.tags["pruned"] == trial.user_attrs[REASON]
    files = {file.path for file in MlflowClient(workplace.tracking_uri).list_artifacts(parent.info.run_id)}
    assert {"unets_best.yaml", "history.png"} <= files


def test_the_best_trial_is_a_study_that_trains_the_same_model(
    workplace: Workplace, searched: Path, tmp_path: Path
) -> None:
    best = min((t for t in trials(searched, "unets") if t.value is not None and t.state == TrialState.COMPLETE),
               key=lambda trial: trial.value)  # fmt: skip
    (was,) = searched.glob(f"*_sweep/trial_{best.number}/config.yaml")
    workplace.main(
        "--config-dir", str(searched / "search" / "unets"), "experiment=unets_best", f"hydra.run.dir={tmp_path}",
        *workplace.places, f"paths.output={searched}", "tracking.experiment=unets_best",
    )  # fmt: skip
    first, again = (yaml.safe_load(path.read_text()) for path in (was, tmp_path / "config.yaml"))
    assert {key for key in first if first[key] != again[key]} == {"arm", "tracking"}
    (run,) = runs(workplace, "unets_best")
    assert run.data.metrics["best/val/rmse"] == pytest.approx(best.value, rel=1e-6)


def test_a_search_that_is_done_says_so_and_runs_nothing(
    workplace: Workplace, searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workplace.main(*command(workplace, searched, "unets", *UNET))
    assert len(trials(searched, "unets")) == 4
    said = capsys.readouterr().out
    assert "all 4 trials" in said and "the best by val/rmse" in said


def test_a_search_goes_on_only_as_what_it_was(
    workplace: Workplace, searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        workplace.main(*command(workplace, searched, "unets", *UNET, "trainer.epochs=3"))
    line = "error: trainer.epochs: must be as in search unets, which goes on: 2; or give another"
    assert line in capsys.readouterr().err


# --- killed ---------------------------------------------------------------------------------------


def test_a_killed_search_goes_on_with_the_draws_of_an_unbroken_one(workplace: Workplace, tmp_path: Path) -> None:
    words = command(workplace, tmp_path, "killed", *RIDGE)
    process = workplace.start(*words)
    while process.is_alive() and not list(tmp_path.glob("*_sweep/trial_1")):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [trial.state for trial in trials(tmp_path, "killed")] == [TrialState.COMPLETE, TrialState.RUNNING]

    workplace.main(*words)
    found = trials(tmp_path, "killed")
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    unbroken, space = optuna.create_study(), search_space({}, RIDGE[1:2])
    for draw, trial in enumerate(trial for trial in found if trial.state == TrialState.COMPLETE):
        unbroken.sampler = sampler_of_draw(options(n_trials=3), draw)
        asked = unbroken.ask(space.distributions)
        assert asked.params == trial.params
        unbroken.tell(asked, trial.value)


# --- its parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "wanted"),
    [
        ("choice(3,5)", CategoricalDistribution([3, 5])),
        ("3,5", CategoricalDistribution([3, 5])),
        ("choice([],[{source:evi,radius:1.0}])", CategoricalDistribution(["[]", "[{source:evi,radius:1.0}]"])),
        ("choice(true,'a b')", CategoricalDistribution([True, r"a\ b"])),
        ("range(2,6)", IntDistribution(2, 5)),
        ("range(16,97,16)", IntDistribution(16, 96, step=16)),
        ("range(0.5,2.0,0.5)", FloatDistribution(0.5, 1.5, step=0.5)),
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("tag(log,int(interval(4,64)))", IntDistribution(4, 64, log=True)),
    ],
)
def test_words_for_sweeps_are_what_is_drawn_from(sweep: str, wanted: object) -> None:
    space = search_space({"model.x": sweep}, ["seed=1"])
    assert space.fixed == ("seed=1",)
    assert space.distributions == {"model.x": wanted}


def test_the_command_line_replaces_what_a_study_searches() -> None:
    params = {"a": "choice(1,2)", "b": "interval(0,1)", "c": 5}
    space = search_space(params, ["b=0.5", "a=choice(3,4)", "+d=7"])
    assert space.fixed == ("b=0.5", "c=5", "+d=7") and list(space.distributions) == ["a"]
    assert words_of({"a": 3}) == ["a=3"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a=1"], "hydra.sweeper.params: must name what is searched"),
        (["a=tag(lg,interval(1,2))"], "a: must have no tag but log"),
        (["a=tag(log,choice(1,2))"], "a: must have no tag but log"),
        (["a=tag(log,interval(0,2))"], "a: "),
        (["a=range(5,5)"], "a: must hold one number or more"),
        (["a=choice("], "hydra.sweeper.params: "),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        search_space({}, words)
    (line,) = error.value.faults
    assert part in line and "\n" not in line


@pytest.mark.parametrize("metric", ["test/rmse", "truth/rmse", "val/nonsense"])
def test_only_the_validation_part_judges(metric: str) -> None:
    with pytest.raises(ConfigError, match="metric: must be .*val/rmse") as error:
        options(metric=metric)
    assert ("cannot be judged by it any more" in str(error.value)) == (not metric.startswith("val/"))


def test_a_direction_towards_worse_models_is_refused() -> None:
    assert options(metric="val/r2", direction="maximize").direction == "maximize"
    with pytest.raises(ConfigError, match="direction: must lead to better models"):
        options(metric="val/r2")


leaves = st.one_of(st.none(), st.integers(-3, 3), st.lists(st.integers(0, 2), max_size=2))
flat_sections = st.fixed_dictionaries({}, optional={"a": leaves, "b": leaves})
sections = st.fixed_dictionaries({}, optional={"a": leaves, "S": flat_sections, "T": st.none() | flat_sections})


def complete(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`wanted` with each key that a merge with `base` cannot take away."""
    merged = OmegaConf.to_container(OmegaConf.merge(base, wanted))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


@given(sections, sections)
def test_what_is_written_of_a_configuration_restores_it(base: dict[str, Any], other: dict[str, Any]) -> None:
    wanted = complete(base, other)
    assert complete(base, beyond(base, wanted)) == wanted


def test_folds_report_one_after_the_other_and_are_judged_by_their_mean(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=open_storage(url), study_name="folds")
    study.ask({"x": IntDistribution(0, 1)})
    trial = SearchTrial(options(storage=url, study_name="folds"), 0)
    for scores in ([0.5, 0.3], [0.7, 0.4]):
        for epoch, score in enumerate(scores):
            assert trial.report({"val/rmse": score}, epoch, 2) == ""
        trial.trained({"val/rmse": scores[-1]})
    trial.complete()
    (found,) = study.trials
    assert found.intermediate_values == pytest.approx({0: 0.5, 1: 0.3, 2: 0.5, 3: 0.35})
    assert found.value == pytest.approx(0.35)


def test_many_workers_write_to_one_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=open_storage(url), study_name="many")
    numbers = [study.ask({"x": FloatDistribution(0, 1)}).number for _ in range(4)]

    def work(number: int) -> None:
        trial = SearchTrial(options(storage=url, study_name="many", pruner="none"), number)
        for epoch in range(15):
            trial.report({"val/rmse": float(number)}, epoch, 15)
        trial.trained({"val/rmse": float(number)})
        trial.complete()

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, numbers))
    assert [trial.value for trial in study.trials] == [0.0, 1.0, 2.0, 3.0]
    assert all(len(trial.intermediate_values) == 15 for trial in study.trials)


def test_a_metric_that_a_run_lacks_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=open_storage(url), study_name="lacking").ask()
    trial = SearchTrial(options(storage=url, study_name="lacking", metric="val/cells_rmse"), 0)
    with pytest.raises(ValueError, match=r"hydra.sweeper.metric: must be what this run has, val/rmse \(found"):
        trial.report({"val/rmse": 1.0, "train/loss": 1.0}, 0, 1)
