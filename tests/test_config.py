"""Every configuration we ship is valid, and every mistake is refused in one clear line that names its key."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from sifscale.config import (
    PROJECT_ROOT,
    BuildCommand,
    BuildConfig,
    ConfigError,
    RunConfig,
    digest,
    load,
    plain,
    validate,
)

CONF = PROJECT_ROOT / "conf"
STUDIES = sorted(path.stem for path in (PROJECT_ROOT / "experiments").glob("*.yaml"))
JOBS_TRIED = 6  # of a study's sweep, spread evenly: composing one takes about 70 ms
GROUPS: dict[str, list[str]] = {}
for _file in sorted(CONF.glob("*/*.yaml")):
    if _file.parent.name != "experiment":
        GROUPS.setdefault(_file.parent.name, []).append(_file.stem)
OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]
FAULT_LINE = re.compile(r"[a-z_]+(\.\w+|\[\w+\])*: \S.* \(found .+\)")


def composed(*overrides: str, entry: str = "train", with_hydra: bool = False) -> DictConfig:
    """What the entry point of this name gets from Hydra for these words on its command line."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(entry, list(overrides), return_hydra_config=with_hydra)


@functools.cache
def _composed_once(*overrides: str) -> DictConfig:
    return composed(*overrides)


def values(*overrides: str) -> dict[str, Any]:
    """Resolved plain values, composed once for all tests; a copy that may be changed."""
    return copy.deepcopy(plain(_composed_once(*overrides)))


def faults_of(cfg: DictConfig, section: type[BuildConfig] = RunConfig) -> list[str]:
    """The lines with which a configuration is refused; each has the form ``key: rule (found value)``."""
    with pytest.raises(ConfigError) as caught:
        load(cfg, section)
    for line in caught.value.faults:
        assert FAULT_LINE.fullmatch(line), line
    return caught.value.faults


def changed(base: Sequence[str], changes: dict[str, Any]) -> DictConfig:
    """A composed configuration with values written over it, as a careless edit of the YAML would do."""
    cfg = copy.deepcopy(_composed_once(*base))
    OmegaConf.set_struct(cfg, False)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


# --- what we ship is valid ------------------------------------------------------------------------


def test_every_group_of_the_defaults_list_is_tried() -> None:
    train = OmegaConf.load(CONF / "train.yaml")
    assert isinstance(train, DictConfig)
    groups = {key for entry in train.defaults if isinstance(entry, DictConfig) for key in entry}
    assert groups - {"experiment"} == set(GROUPS)


KIND = {option: yaml.safe_load((CONF / "model" / f"{option}.yaml").read_text())["name"] for option in GROUPS["model"]}
# persistence reads other composites of the tested places, which only this split leaves to the train part
NEEDS = {option: ("split=time",) for option, kind in KIND.items() if kind == "persistence"}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_is_valid(group: str, option: str) -> None:
    run = validate(values(f"{group}={option}", *NEEDS.get(option, ())), RunConfig)
    assert getattr(run, group)


@pytest.mark.parametrize("window", GROUPS["window"])
def test_build_takes_every_window(window: str) -> None:
    assert load(composed(f"window={window}", entry="build"), BuildCommand).window.name == window


# features=legacy repeats one study and reads the bands of its tables
WITHOUT_LEGACY = {"cfis_2016", "modis_lst_2020", "spain_2023"}
NAMES = ("window", "crop", "split", "features", "model", "trainer")


def test_all_options_go_together() -> None:
    """Composing thousands of combinations would take minutes: options are put together by hand."""
    refused = []
    for choice in itertools.product(*(GROUPS[group] for group in NAMES)):
        if choice[0] in WITHOUT_LEGACY and "legacy" in choice:
            continue
        try:
            validate(_together(choice), RunConfig)
        except ConfigError as error:
            assert all(FAULT_LINE.fullmatch(line) for line in error.faults), error.faults
            keys = {line.split(": ")[0] for line in error.faults}
            if not keys or keys != _refused_for(choice):
                refused.append((choice, error.faults))
        else:
            assert not _refused_for(choice), choice
    assert not refused


def _refused_for(choice: Sequence[str]) -> set[str]:
    """Keys for which a baseline is refused: persistence without composites of tested places, NIRv without its bands."""
    window, _, split, features, option, _ = choice
    model = KIND[option]
    keys = set()
    if model == "persistence":
        keys |= {"split.name"} if split != "time" else set()
        keys |= {"window.source"} if window in ("cfis_2016", "modis_lst_2020") else set()
    if model in ("nirv_ratio", "lue") and features == "legacy":  # coarse bands, scaled to 0..1
        keys |= {"features.bands" if model == "nirv_ratio" else "model.vegetation", "features.legacy.minmax_everything"}
    return keys


def _together(choice: Sequence[str]) -> dict[str, Any]:
    window = _in_window(choice[0], "window", choice[0])
    pieces = zip(NAMES[1:], choice[1:], strict=True)
    return {**window, **{group: _in_window(choice[0], group, option)[group] for group, option in pieces}}


@functools.cache
def _in_window(window: str, group: str, option: str) -> dict[str, Any]:
    """Plain values of one option, with what it refers to in the window."""
    cfg = copy.deepcopy(_composed_once(f"window={window}"))
    with open_dict(cfg):
        cfg[group] = _composed_once(f"{group}={option}")[group]
    return plain(cfg)


def test_combinations_put_together_by_hand_are_what_hydra_composes() -> None:
    draw = random.Random(0)
    for window in GROUPS["window"]:
        options = [window, *(draw.choice(GROUPS[group]) for group in NAMES[1:])]
        words = [f"{group}={option}" for group, option in zip(NAMES, options, strict=True)]
        assert _together(options) == values(*words)


def test_every_study_is_valid() -> None:
    """Jobs of each file in experiments/, as its sweep would start them."""
    for study in STUDIES:
        for job in _jobs(study):
            load(composed(f"experiment={study}", *job), RunConfig)


def _jobs(study: str, *words: str) -> list[list[str]]:
    sweeper = composed(f"experiment={study}", *words, with_hydra=True).hydra.sweeper
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides(params)
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_discrete_sweep()
        else [str(override.input_line)]
        for override in overrides
        if override.is_discrete_sweep() or not override.is_sweep_override()  # a search draws from its ranges
    ]
    jobs = [list(job) for job in itertools.product(*choices)]
    if "n_trials" in sweeper:  # a search may draw what is refused; it starts from what is not
        return jobs[:1]
    return jobs[:: -(-len(jobs) // JOBS_TRIED)]


def test_a_study_overrides_everything_and_its_sweep_is_read(tmp_path: Path) -> None:
    study = tmp_path / "experiment" / "tried.yaml"
    study.parent.mkdir()
    study.write_text(
        "# @package _global_\n"
        "defaults:\n  - override /model: sifnet\n  - override /window: minnesota_2019\n"
        "study: {name: tried, title: A title, pool: folds, reference: {lbp: {r2: 0.97}}}\n"
        "arm: ${model.name}\ntrainer: {epochs: 3}\n"
        "hydra: {sweeper: {params: {features: 'base,lbp', split.folds: 'range(5)'}}}\n"
    )
    place = f"hydra.searchpath=[file://{tmp_path}]"
    assert _jobs("tried", place)[:2] == [["features=base", "split.folds=0"], ["features=base", "split.folds=2"]]
    run = load(composed("experiment=tried", place, "features=base", "split.folds=4"), RunConfig)
    assert (run.label, run.trainer.epochs, run.window.name) == ("sifnet", 3, "minnesota_2019")
    assert run.study is not None and run.study.reference == {"lbp": {"r2": 0.97}}
    assert run.coarse.factor == run.window.factor == 3


def test_a_valid_configuration_cannot_be_changed_afterwards() -> None:
    run = load(composed(), RunConfig)
    with pytest.raises(ValueError, match="frozen"):
        run.seed = 1
    assert run.label == f"{run.model.name} {run.features.name}"


# --- mistakes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """Values written over a valid configuration; the refusal must name the key and say (part of) the rule."""

    changes: dict[str, Any]
    key: str
    rule: str
    base: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((*self.base, *(f"{key}={value}" for key, value in self.changes.items())))


def one(key: str, value: Any, rule: str, *base: str, at: str | None = None) -> Mistake:
    return Mistake({key: value}, at or key, rule, base)


TABLE = "window=minnesota_2019"
NIRV = "model=nirv_ratio"
SAMPLES = {"name": "samples", "test_share": 0.2, "validation_share": 0.2}
BY_BAND = "features.bands=[coarse,nirv,sif_by_footprint]"
BY_FOOTPRINT = ("level=fine", "window.footprint_weights=2", "crop.augment=false")
UNKNOWN = "is no key of this section"
LBP_BITS = {"source": "evi", "method": "default", "points": 8, "radius": 1.0, "encoding": "bits"}
LBP = {"source": "evi", "method": "uniform", "points": 8, "radius": 1.0, "encoding": "onehot"}
DATES = {"start": "2019-06-10", "end": "2019-06-09", "path": "a.csv", "coarse_path": None}

MISTAKES = [
    # keys that do not exist, one in each section
    one("sed", 1, UNKNOWN),
    one("paths.ouput", "x", UNKNOWN),
    one("window.seeds", 1, UNKNOWN),
    one("window.files[0].strat", "2019-05-25", UNKNOWN, TABLE),
    one("crop.siz", 24, UNKNOWN),
    one("crop.number", 24, UNKNOWN, "crop=sliding"),
    one("split.guard", 1, UNKNOWN),
    one("split.folds", 1, UNKNOWN, "split=time"),
    one("features.bnads", ["coarse"], UNKNOWN),
    one("features.lbp[0].point", 8, UNKNOWN),
    one("features.select", {"best": 3}, UNKNOWN, at="features.select.best"),
    one("features.local_stats.window", 3, UNKNOWN, "features=local_stats"),
    one("features.legacy.diff", True, UNKNOWN, "features=legacy"),
    one("features.legacy.lbp_source", "sif", "one of features.bands", TABLE, "features=legacy"),
    one("split.tested", "middle", "'last' or 'first'", "split=time"),
    one("split.tested", "last", UNKNOWN, "split=samples"),
    one("model.width", [16], UNKNOWN),
    one("model.widths", [16], UNKNOWN, "model=sifnet"),
    one("model.residual", True, UNKNOWN, "model=bilinear"),
    one("trainer.epoch", 3, UNKNOWN),
    one("tracking.url", "x", UNKNOWN),
    one("coarse.size", 3, UNKNOWN),
    one("normalisation.scale", "x", UNKNOWN),
    # values that are not given
    one("crop.size", "???", "must be given"),
    one("window", "???", "must be given"),
    one("window.factor", "???", "must be given"),  # and not coarse.factor, which only follows it
    one("features.lbp[0].source", "???", "must be given"),
    one("study", {"name": "x", "title": "X", "pool": "none"}, "must be given", at="study.reference"),
    one("split.block", [24], "must be given", at="split.block[1]"),
    one("model", {"kernel_size": 3}, "must be given", at="model.name"),
    one("crop.size", "${crop.stride}", "cannot be resolved"),
    one("paths.raw", "${oc.env:SIFSCALE_NO_SUCH_VARIABLE}", "cannot be resolved"),
    # another type
    one("crop.size", "large", "must be a whole number"),
    one("crop.size", 24.0, "must be a whole number"),
    one("crop.size", True, "must be a whole number"),
    one("trainer.learning_rate", "fast", "must be a number"),
    one("check", "maybe", "must be true or false"),
    one("arm", 3, "must be text"),
    one("features.bands", "evi", "must be a list"),
    one("features.bands", ["coarse", 2], "must be text", at="features.bands[1]"),
    one("split.block", [24, 28, 32], "must hold 2 or fewer values"),
    one("features.lbp", LBP, "must be a list"),
    one("trainer", None, "must be a section"),
    one("model", "unet", "must be a section"),
    one("features.select", 3, "must be a section"),
    one("window.units", "mW", "must be a section"),
    # out of range, or none of the choices
    one("seed", -1, "greater than or equal to 0"),
    one("crop.size", 0, "greater than 0"),
    one("crop.min_valid", 1.5, "less than or equal to 1"),
    one("crop.min_valid", float("nan"), "finite number"),
    one("window.factor", 1, "greater than or equal to 2"),
    one("window.simulation.fill_share", 1.0, "less than 1"),
    one("window.files", [], "must hold 1 or more values", TABLE),
    one("window.columns.sif", [], "must hold 1 or more values", TABLE),
    one("split.k", 2, "greater than or equal to 3"),
    one("split.block", [0, 24], "greater than 0", at="split.block[0]"),
    one("split.test_share", 0.0, "greater than 0", "split=legacy"),
    one("features.lbp[0].points", 64, "less than or equal to 32"),
    one("features.lbp[0].radius", 0.0, "greater than 0"),
    one("model.dropout", 1.0, "less than 1"),
    one("model.widths", [], "must hold 1 or more values"),
    one("model.strengths", [], "must hold 1 or more values", "model=ridge"),
    one("model.strengths", [0.1, 0.0], "greater than 0", "model=ridge", at="model.strengths[1]"),
    one("trainer.patience", 0, "greater than 0"),
    one("trainer.loss", "rmse", "must be 'mse', 'mae', 'huber', 'error_weighted', 'cells',"),
    one("trainer.schedule", "step", "must be 'constant', 'cosine' or 'one_cycle'"),
    one("trainer.average", "mean", "must be 'none', 'ema' or 'swa'"),
    one("trainer.compile", "maybe", "must be true or false"),
    one("trainer.precision", "bf16", "must be 'auto', '32-true', 'bf16-mixed' or '16-mixed'"),
    one("features.lbp[0].method", "uniforme", "must be 'default', 'ror', 'uniform', 'nri_uniform' or 'var'"),
    one("model.name", "unett", "must be one of 'unet', 'sifnet'"),
    one("window.source", "csv", "must be one of 'table', 'satellite', 'osse', 'patches'"),
    one("conservation", "yes", "must be 'none', 'additive', 'multiplicative', 'softmax' or 'smooth'"),
    # days
    one("window.period.start", "2019-02-30", "must be a day such as 2019-05-25"),
    one("window.period.start", 20190525, "must be a day such as 2019-05-25"),
    one("window.period.start", 0, "must be a day such as 2019-05-25"),  # not 1970-01-01
    one("window.files[1].end", "June 2019", "must be a day such as 2019-05-25", TABLE),
    one("window.files", [DATES], "must not be earlier than start", TABLE, at="window.files[0].end"),
    # relations within a section
    one("window.period.end", "2018-01-01", "must not be earlier than start (2019-05-09)"),
    one("window.grid.bounds", [0, 1, 0, 2], "must be west, south, east, north"),
    one("window.tile_px", 1001, "must be a multiple of window.grid.fine_factor (4)"),
    one("window.soundings", None, "('sif') must come from soundings or", at="window.fine_layers"),
    one("window.soundings.quality.valid_range", [3.0, 1.0], "must be a lower and a higher value"),
    one("window.fine_layers[0].path", "truth_{day}.nc", "must hold no braces but {start} and {end}"),
    one("dask.scheduler", "slurm", "should match pattern"),
    one("split.folds", 5, "must be all, or a fold from 0 to split.k - 1 = 4"),
    one("split.validation_share", 0.8, "must leave something to train on", "split=time"),
    one("model.kernel_size", 4, "must be odd"),
    one("model.kernel", 4, "must be odd", "model=deconvolution"),
    one("features.local_stats.window_px", 4, "must be odd", "features=local_stats"),
    one("features.lbp[0].encoding", "bits", "must be onehot or scaled for method uniform"),
    one("features.lbp[2].encoding", "onehot", "must be raw for method var", "features=lbp_multiscale"),
    one("features.bands", ["coarse", "evi", "coarse"], "must not name anything twice"),
    one("features.lbp", [LBP, LBP], "must not name anything twice"),
    one("window.target", "sif_740", "must name the columns of window.target", TABLE, at="window.columns"),
    # relations between sections
    one("crop.size", 20, "must be a multiple of 2**depth = 8"),
    one("crop.size", 4, "must be at least 8", "model=cnn_dense"),
    one("crop.size", 16, "must be a multiple of coarse.factor = 3", TABLE),
    one("crop.stride", 10, "must be a multiple of coarse.factor = 4", "crop=sliding"),
    one("crop.size", 32, "must not exceed the block"),
    one("crop.size", 104, "must not exceed the sample of 96 x 128 px", "split=time"),
    Mistake({"features.lbp": [LBP_BITS]}, "crop.augment", "must be false"),
    one("features.lbp[0].source", "sif", "must not be the target"),
    one("features.lbp[0].source", "elevation", "must be coarse, ndvi"),
    one("features.bands", ["coarse", "sif"], "must not be the target", at="features.bands[1]"),
    one("features.bands", ["lai"], "must be coarse, ndvi", at="features.bands[0]"),
    one("features.bands", ["coarse_sif"], "must be coarse, ndvi", at="features.bands[0]"),
    one("features.local_stats.bands", [], "must hold 1 or more values", "features=local_stats"),
    Mistake(
        {"features.local_stats.bands": ["sif"]},
        "features.local_stats.bands[0]",
        "must not be the target",
        ("features=local_stats",),
    ),
    one("features.select", {"top": None}, "must give either top or min_correlation"),
    one("features.select", {"top": 3, "min_correlation": 0.5}, "must give either top or min_correlation"),
    one("coarse.method", "moving_mean", "must be odd", at="coarse.factor"),
    one("coarse.method", "given", "window has no given coarse field"),
    one("window.files[0].coarse_path", None, "no given", TABLE, "coarse.method=given", at="coarse.method"),
    one("features.bands", ["coarse", "evi", "nir"], "must hold nirv, or ndvi and nir, or red and nir", NIRV),
    one("features.select", {"top": 1, "min_correlation": None}, "must be null", NIRV),
    one("coarse.method", "given", "must be block_mean", TABLE, NIRV),
    one("coarse.method", "moving_mean", "must be block_mean for conservation=softmax", TABLE, "conservation=softmax"),
    one("conservation_weight", 0.1, "must be block_mean", TABLE, "coarse.method=given", at="coarse.method"),
    one("trainer.loss", "aggregate", "must be block_mean", TABLE, "coarse.method=given", at="coarse.method"),
    one("trainer.loss", "aggregate", "which learns from it", "model=ridge"),
    one("trainer.loss", "footprints", "which learns from it", "model=ridge", *BY_FOOTPRINT),
    one("level", "native", "must be fine for trainer.loss=footprints", "trainer.loss=footprints", *BY_FOOTPRINT),
    one("level", "native", "must be fine for model.ratio=footprint", NIRV, "model.ratio=footprint", *BY_FOOTPRINT),
    one("window.footprint_weights", None, "must be given", "trainer.loss=footprints", *BY_FOOTPRINT),
    one("window.footprint_weights", None, "must be given", NIRV, "model.ratio=footprint", *BY_FOOTPRINT),
    one("level", "native", "must be fine for the band sif_by_footprint", BY_BAND, *BY_FOOTPRINT),
    one("window.footprint_weights", None, "must be given for the band", BY_BAND, *BY_FOOTPRINT),
    one("features.bands", ["coarse", "evi", "sif_by_footprint"], "must hold nirv, or", *BY_FOOTPRINT),
    one("features.bands", ["nirv", "sif_by_footprint"], "be without", NIRV, "model.ratio=footprint", *BY_FOOTPRINT),
    one("crop.augment", True, "must be false for trainer.loss=footprints", "trainer.loss=footprints", *BY_FOOTPRINT),
    one("crop.size", 16, "must be at least 20 for trainer.loss=footprints", "trainer.loss=footprints", *BY_FOOTPRINT),
    one("window.footprint_weights", 0, "greater than 0"),
    one("window.footprint_weights", 2, "must be null for a window without soundings", "window=spain_2023"),
    one("window.grid.fine_factor", 1, "without a finer grid", *BY_FOOTPRINT, at="window.footprint_weights"),
    one("trainer.loss", "cells", "must not be cells where evaluation.cell_px is null"),
    one("evaluation.cell_px", 3, "must divide the coarse block of 4 px"),
    one("trainer.members", 3, "must be 1 for model.name=ridge, which is no network", "model=ridge"),
    one("model.temperature", "lst", "must be one of features.bands", "model=lue"),
    one("model.temperature", "ndvi", "not named twice", "model=lue"),
    one("normalisation.method", "minmax", "must be zscore for model.name=lue", "model=lue"),
    one("uncertainty.name", "bayes", "must be one of 'none', 'constant', 'ensemble'"),
    one("uncertainty.level", 0.9, UNKNOWN),  # none has none
    one("uncertainty.level", 1.0, "less than 1", "uncertainty=constant"),
    one("uncertainty.level", 0.0, "greater than 0", "uncertainty=quantile"),
    one("uncertainty.beta", 1.5, "less than or equal to 1", "uncertainty=heteroscedastic"),
    one("uncertainty.passes", 1, "greater than or equal to 2", "uncertainty=mc_dropout"),
    one("uncertainty.dropout", 0.0, "greater than 0", "uncertainty=mc_dropout"),
    one("trainer.members", 1, "must be 2 or more for uncertainty.name=ensemble", "uncertainty=ensemble"),
    one("trainer.members", 2, "whose members are passes", "uncertainty=mc_dropout"),
    one("model.dropout", 0.2, "whose uncertainty.dropout takes its place", "uncertainty=mc_dropout"),
    one("trainer.loss", "mae", "must be mse for uncertainty.name=quantile", "uncertainty=quantile"),
    one("trainer.loss", "dssim", "must be mse for uncertainty", "uncertainty=heteroscedastic"),
    one("trainer.loss", "aggregate", "does without", "uncertainty=constant", at="uncertainty.name"),
    one("uncertainty", {"name": "constant", "level": 0.9}, "must not be legacy", "split=legacy", at="split.name"),
    one("split.validation_share", 0.0, "calibrated on the validation part", "split=time", "uncertainty=constant"),
    one("level", "fine", "which has no fine truth", TABLE),
    one("coarse.factor", 8, "must be block_mean with factor 4", "level=fine", "crop.size=32", at="coarse"),
    one("split.folds", "every", "must be all, or a fold from 0 to split.k - 1 = 4"),
    one("split", SAMPLES, "must be time for model.name=persist", "split=time", "model=persistence", at="split.name"),
]


@pytest.mark.parametrize(
    ("model", "name", "rule"),
    [
        ("ridge", "ensemble", "must be none or constant for model.name=ridge, which is no network"),
        ("bilinear", "quantile", "must be none or constant for model.name=bilinear, which is no network"),
        ("random_forest", "mc_dropout", "must be none or constant for model.name=random_forest"),
        ("sifnet", "mc_dropout", "must not be mc_dropout for model.name=sifnet, which has no dropout"),
    ],
)
def test_error_bars_that_a_model_cannot_tell_are_refused_in_one_line(model: str, name: str, rule: str) -> None:
    (line,) = faults_of(composed(f"model={model}", f"uncertainty={name}"))
    assert line.startswith(f"uncertainty.name: {rule}") and line.endswith(f"(found '{name}')")


def test_an_ensemble_has_five_members_unless_the_command_line_says_otherwise() -> None:
    members = {words: composed(*words).trainer.members for words in [
        ("uncertainty=none",), ("uncertainty=ensemble",), ("uncertainty=ensemble", "trainer.members=3"),
        ("trainer.members=3", "uncertainty=ensemble"), ("uncertainty=ensemble", "trainer=gpu"),
    ]}  # fmt: skip
    assert list(members.values()) == [1, 5, 3, 3, 5]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_refused_in_a_line_that_names_its_key(mistake: Mistake) -> None:
    lines = faults_of(changed(mistake.base, mistake.changes))
    told = [line for line in lines if line.startswith(f"{mistake.key}: ") and mistake.rule in line]
    assert len(told) == 1, lines


OUT_OF_RANGE = {
    (): "seed=-1 split.folds=-1 split.guard_px=-1 crop.min_valid=-0.1 coarse.factor=1 model.dropout=-0.1 "
    "model.bottleneck=0 model.convolutions=0 model.kernel_size=-1 trainer.devices=0 trainer.threads=-1 "
    "trainer.epochs=0 trainer.batch_size=0 trainer.learning_rate=0 trainer.weight_decay=-1 "
    "trainer.total_variation_weight=-1 trainer.average_decay=1 conservation_weight=-1 "
    "trainer.memory_limit_mb=0 window.grid.pixel=0 window.simulation.seed=-1 "
    "window.simulation.sounding_noise=-1 window.simulation.cloudiness=1.5 window.simulation.fill_share=-0.1 "
    "window.simulation.margin_km=0 window.simulation.days_per_period=0 window.period.days=0 window.grid.fine_factor=0 "
    "window.period.first_day=0 window.tile_px=0 window.soundings.gridding.min_weight=-1 dask.workers=0 "
    "window.soundings.gridding.subpixels=0 window.vegetation.quality.max_usefulness=16 "
    "window.soundings.quality.max_cloud_fraction=2 window.soundings.quality.max_error=0",
    ("crop=sliding",): "crop.size=0 crop.stride=0 crop.min_valid=-0.1",
    ("crop=sliding", "model=nearest"): "crop.min_valid=1.1",
    ("model=nirv_ratio",): "model.floor=0",
    ("model=random_forest",): "model.trees=0 model.min_leaf=0 model.max_features=0 model.max_pixels=0",
    ("model=gradient_boosting",): "model.iterations=0 model.learning_rate=0 model.max_leaves=1 model.min_leaf=0 "
    "model.max_pixels=0",
    ("split=time",): "split.test_share=0 split.validation_share=-0.1",
    ("split=samples",): "split.test_share=1 split.validation_share=1",
    ("split=legacy",): "split.test_share=1",
    ("features=local_stats",): "features.local_stats.window_px=1",
    ("features.select={top:0,min_correlation:0}",): "features.select.top=0 features.select.min_correlation=0",
    ("features.select={min_correlation:1}",): "features.select.min_correlation=1",
    ("features.lbp.0.points=0",): "features.lbp[0].points=0",
}


@pytest.mark.parametrize("base", OUT_OF_RANGE, ids=" ".join)
def test_each_number_has_its_range(base: tuple[str, ...]) -> None:
    """Each number is set just outside its range; all are refused at once."""
    changes = dict(word.split("=") for word in OUT_OF_RANGE[base].split())
    lines = faults_of(changed(base, {key: json.loads(value) for key, value in changes.items()}))
    assert {line.split(": ")[0] for line in lines} == set(changes)


def test_a_line_shows_the_value_that_was_found() -> None:
    assert faults_of(changed((), {"crop.size": 20})) == [
        "crop.size: must be a multiple of 2**depth = 8 for model.widths of 3 levels (found 20)"
    ]
    assert faults_of(changed((), {"model.name": "unett"}))[0].endswith("(found 'unett')")
    assert faults_of(changed((), {"coarse.factor": "${window.factr}"}))[0].endswith("(found ${window.factr})")
    assert len(faults_of(changed((), {"arm": list(range(999))}))[0]) < 300


def test_faulty_values_of_a_list_are_reported_without_calling_the_list_too_short() -> None:
    assert faults_of(changed((), {"model.widths": [0, 0]})) == [
        "model.widths[0]: must be greater than 0 (found 0)",
        "model.widths[1]: must be greater than 0 (found 0)",
    ]


def test_configurations_are_valid_before_the_mistake() -> None:
    for base in {mistake.base for mistake in MISTAKES}:
        load(changed(base, {}), RunConfig)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"crop.size": "large", "trainer.loss": "rmse", "sed": 1}, ["crop.size", "trainer.loss", "sed"]),
        ({"crop.size": 26, "features.bands": ["sif"]}, [*["crop.size"] * 3, "features.bands[0]"]),
        ({"window.factor": "???", "arm": "???"}, ["arm", "window.factor"]),
        ({"split.folds": 9, "features.lbp[0].encoding": "raw"}, ["split.folds", "features.lbp[0].encoding"]),
    ],
)
def test_all_faults_are_told_at_once(changes: dict[str, Any], keys: list[str]) -> None:
    lines = faults_of(changed((), changes))
    assert sorted(line.split(": ")[0] for line in lines) == sorted(keys)


def test_build_refuses_a_window_as_train_does() -> None:
    cfg = composed("window.factor=1", "window.period.start=soon", "export=zip", entry="build")
    keys = [line.split(": ")[0] for line in faults_of(cfg, BuildCommand)]
    assert keys == ["window.factor", "window.period.start", "export"]


# --- plain values and digests ---------------------------------------------------------------------


def test_plain_values_are_resolved_and_lie_below_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIFSCALE_RAW", raising=False)
    found = plain(composed())
    assert "${" not in json.dumps(found) and "hydra" not in found
    assert found["paths"]["output"] == str(PROJECT_ROOT / "outputs")
    assert Path(found["paths"]["raw"]).resolve() == (PROJECT_ROOT / "../shared/data").resolve()
    assert found["tracking"]["uri"] == f"sqlite:///{PROJECT_ROOT / 'mlflow.db'}"
    assert found["split"]["guard_px"] == found["coarse"]["factor"] == found["window"]["factor"]


def test_raw_files_can_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIFSCALE_RAW", "/mnt/sif")
    assert plain(composed())["paths"]["raw"] == "/mnt/sif"
    assert plain(composed("paths.raw=/mnt/other"))["paths"]["raw"] == "/mnt/other"


def _leaf_paths(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        yield path
        return
    for key, child in children:
        yield from _leaf_paths(child, (*path, key))


def test_digest_changes_with_every_value() -> None:
    found = values("features=lbp_multiscale")
    digests = {digest(found)}
    paths = list(_leaf_paths(found))
    for path in paths:
        other = copy.deepcopy(found)
        node: Any = other
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = "something else"
        digests.add(digest(other))
    assert len(digests) == len(paths) + 1 > 60
    assert digest("a", "b") != digest("ab") and digest("a", "b") != digest("b", "a")


def test_digest_is_the_hash_of_the_sections_as_json() -> None:
    run, again = load(composed(), RunConfig), load(composed("trainer.epochs=1"), RunConfig)
    assert digest(run.window, run.features) == digest(again.window, again.features)
    assert digest(run) != digest(again)
    text = json.dumps([run.coarse.model_dump(), "v1", {"a": 1, "b": 2}], sort_keys=True)
    assert digest(run.coarse, "v1", {"b": 2, "a": 1}) == hashlib.sha256(text.encode()).hexdigest()[:16]
    as_whole_number = load(composed("window.grid.pixel=4000"), RunConfig)
    assert digest(as_whole_number.window) == digest(run.window)  # 4000 and 4000.0 are one value


# --- the command line -----------------------------------------------------------------------------

HEAVY = ("torch", "mlflow", "pytorch_lightning", "xarray", "pandas", "matplotlib", "dask", "zarr")
# Runs several command lines in one process, each as "__main__" of its script, and prints what became of them.
DRIVER = """
import contextlib, io, json, runpy, sys
lines, heavy = sys.argv[1:]
answers = []
for script, *words in json.loads(lines):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [script, *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as leaving:
            code = leaving.code or 0
    loaded = [name for name in json.loads(heavy) if name in sys.modules]
    answers.append([code, out.getvalue(), err.getvalue(), loaded])
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str
    loaded: tuple[str, ...] = ()  # heavy libraries that had been imported by then


def python(*words: str, cwd: Path) -> Answer:
    """What a Python process answers; its hash seed is random, so nothing may hang on the order of a set."""
    search = os.pathsep.join(filter(None, [str(PROJECT_ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": search, "PYTHONHASHSEED": "random", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


REFUSED = {  # words on the command line: keys of the lines they are refused with
    ("crop.size=20",): ["crop.size"],
    ("crop.size=large", "trainer.loss=rmse", "split.folds=7"): ["crop.size", "split.folds", "trainer.loss"],
    ("features.lbp.0.source=sif", "coarse.method=given"): ["features.lbp[0].source", "coarse.method"],
    ("+trainer.epoch=3",): ["trainer.epoch"],
    ("window.factor=???",): ["window.factor"],
    ("coarse.factor=${window.factr}",): ["coarse.factor"],
}
TRAIN, BUILD = str(PROJECT_ROOT / "train.py"), str(PROJECT_ROOT / "build.py")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Answer]:
    """Answers of train.py and build.py to command lines, all from one process far from the project."""
    folder = tmp_path_factory.mktemp("elsewhere")
    outputs = f"paths.output={folder / 'outputs'}"
    lines = [
        (TRAIN, "--help"),
        (TRAIN, "--cfg", "job"),
        *((TRAIN, *words) for words in REFUSED),
        (BUILD, "window.factor=1"),
        (TRAIN, "model=nope"),
        (TRAIN, "check=true"),
    ]
    words = json.dumps([[*line, outputs] for line in lines])
    done = python("-c", DRIVER, words, json.dumps(HEAVY), cwd=folder)
    assert done.code == 0, done.err
    found = [Answer(code, out, err, tuple(loaded)) for code, out, err, loaded in json.loads(done.out)]
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    return dict(zip(lines, found, strict=True))


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_the_command_line_refuses(answers: dict[tuple[str, ...], Answer], words: tuple[str, ...]) -> None:
    answer = answers[(TRAIN, *words)]
    assert answer.code == 1 and not answer.out
    lines = answer.err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["error", key] for key in REFUSED[words]]


def test_build_refuses_on_the_command_line(answers: dict[tuple[str, ...], Answer]) -> None:
    answer = answers[(BUILD, "window.factor=1")]
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "error: window.factor: must be greater than or equal to 2 (found 1)\n"


def test_an_unknown_option_is_answered_with_the_known_ones(answers: dict[tuple[str, ...], Answer]) -> None:
    answer = answers[(TRAIN, "model=nope")]
    assert answer.code == 1 and "Traceback" not in answer.err
    assert "Could not find 'model/nope'" in answer.err
    assert all(f"\t{option}\n" in answer.err for option in GROUPS["model"])


def test_help_lists_every_option(answers: dict[tuple[str, ...], Answer]) -> None:
    answer = answers[(TRAIN, "--help")]
    assert answer.code == 0 and not answer.err
    for group, options in GROUPS.items():
        listed = re.search(rf"^{group}: (.*)$", answer.out, re.MULTILINE)
        assert listed and listed[1].split(", ") == options


def test_the_job_configuration_is_printed(answers: dict[tuple[str, ...], Answer]) -> None:
    answer = answers[(TRAIN, "--cfg", "job")]
    assert answer.code == 0 and not answer.err
    assert OmegaConf.create(answer.out).model == _composed_once().model


def test_help_check_and_refusals_load_nothing_heavy(answers: dict[tuple[str, ...], Answer]) -> None:
    assert {line: answer.loaded for line, answer in answers.items() if answer.loaded} == {}


def test_check_says_ok(answers: dict[tuple[str, ...], Answer]) -> None:
    assert answers[(TRAIN, "check=true")] == Answer(0, "ok: unet lbp\n", "")


def test_a_new_model_or_study_is_one_new_file(tmp_path: Path) -> None:
    """In help and checks; and in tests, which look for options as this file and test_sweep.py do."""
    shutil.copytree(CONF, tmp_path / "conf", symlinks=True)
    shutil.copytree(PROJECT_ROOT / "experiments", tmp_path / "experiments")
    shutil.copy(TRAIN, tmp_path)
    model = (CONF / "model" / "unet.yaml").read_text().replace("[16, 32, 64]", "[8, 16]")
    (tmp_path / "conf" / "model" / "unet_tiny.yaml").write_text(model)
    (tmp_path / "experiments" / "tiny_or_not.yaml").write_text(
        "# @package _global_\n"
        "study: {name: tiny_or_not, title: A title, pool: none, reference: {}}\n"
        "arm: U-Net of ${join:${model.widths}}\n"
        "hydra: {sweeper: {params: {model: 'unet_tiny,unet'}}}\n"
    )
    train, outputs = str(tmp_path / "train.py"), f"paths.output={tmp_path / 'outputs'}"
    sweep = [train, "-m", "experiment=tiny_or_not", "check=true", outputs]
    done = python("-c", DRIVER, json.dumps([[train, "--help"], sweep]), json.dumps(HEAVY), cwd=tmp_path)
    assert done.code == 0, done.err
    (_, text, _, _), (code, checked, faults, _) = json.loads(done.out)
    for group, option in (("model", "unet_tiny"), ("experiment", "tiny_or_not")):
        listed = re.search(rf"^{group}: (.*)$", text, re.MULTILINE)
        assert listed and option in listed[1].split(", ")
    assert (code, faults) == (0, "") and "U-Net of 8 16" in checked and "U-Net of 16 32 64" in checked


def test_train_starts_from_any_directory(tmp_path: Path) -> None:
    answer = python(TRAIN, "check=true", "model=sifnet", f"paths.output={tmp_path / 'runs'}", cwd=tmp_path)
    assert answer == Answer(0, "ok: sifnet lbp\n", "")
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "hydra" / "config.yaml").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_unknown_key_on_the_command_line(tmp_path: Path) -> None:
    answer = python(TRAIN, "crop.siz=24", f"paths.output={tmp_path / 'runs'}", cwd=tmp_path)
    assert answer.code == 1 and not answer.out
    assert "crop.siz" in answer.err and "Traceback" not in answer.err


def test_several_faults_on_the_command_line(tmp_path: Path) -> None:
    words = ("crop.size=20", "coarse.method=moving_mean", "features.bands=[coarse,sif]")
    answer = python(TRAIN, *words, f"paths.output={tmp_path / 'runs'}", cwd=tmp_path)
    assert (answer.code, answer.out) == (1, "")
    keys = [line.split(": ")[1] for line in answer.err.splitlines()]
    assert keys == ["crop.size", "features.bands[1]", "coarse.factor"]


def test_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    code = "from sifscale.config import digest; print(digest({'b': 2, 'a': [1.5, None, 'ü']}, 'sif'))"
    assert python("-c", code, cwd=tmp_path).out.strip() == digest({"a": [1.5, None, "ü"], "b": 2}, "sif")
