"""The chapters of a comparison's page: arms, choices, learning curves, groups of pixels, pictures, provenance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from sifscale import arm_tables, comparison_figures
from sifscale.arms import Arm, number
from sifscale.comparison_figures import Curve, Point
from sifscale.config import Study, Tracking
from sifscale.effects import Effect
from sifscale.html_report import Chart, Grid, PageSection, Part, Picture, TableRow, chart, picture
from sifscale.metrics import Sums
from sifscale.study_runs import artifact_names
from sifscale.tracking import artifact_json, client

SHOWN = 12  # arms in charts and pictures; tables have all
CURVES = {"train/loss": "training loss", "val/rmse": "validation RMSE"}
MAPS, SCATTER = "figures/maps.png", "figures/predicted_against_actual.png"
MEANING = (
    "Scores are of the pooled test pixels of all folds and seeds; ± is the standard deviation over the scores of "
    "single folds and seeds, which mostly says how much folds differ: arms are compared on the same blocks, so that "
    "this spread drops out of their differences."
)
DIFFERENCES = (
    "Differences: paired block bootstrap (blocks of the map are drawn, the same for both arms). Of several seeds the "
    "squared errors are averaged block by block, and what the choice of seeds leaves open is added to interval and p; "
    "an arm with one seed adds nothing. p (Holm) is adjusted for the number of comparisons in the column."
)
STRUCTURE = (
    "Of the same pixels. SSIM: similarity of neighbourhoods, 1 is perfect. In the shorter half of the wavelengths, "
    "spectrum ratio: power of the map over that of the target, 1 is as much fine texture as there is; spectral error: "
    "power of the error over that of the target, 0 is perfect, and 1 no better than no fine texture. Effective "
    "resolution: the shortest wavelength down to which the error has at most half of the target's power. Intervals: "
    "blocks of the map are drawn, as for RMSE; they are of each difference alone."
)


@dataclass(frozen=True, eq=False)
class Compared:
    """Arms that were tested on the same ground, and what was found."""

    ground: str
    study: Study
    units: str
    arms: Sequence[Arm]
    rows: Sequence[dict[str, object]]
    effects: Sequence[Effect]
    verdict: Sequence[str]
    notes: Sequence[str]


def page_section(found: Compared, at: int, tracking: Tracking) -> PageSection:
    """All chapters that there is something for."""
    best = sorted(found.rows, key=lambda row: number(row, "rmse"))[:SHOWN]
    names = {str(row["arm"]) for row in best} | {found.study.baseline}
    shown = [arm for arm in found.arms if arm.name in names]
    parts = [
        _arms(found),
        _structure(found),
        _choices(found),
        _curves(found, shown, tracking),
        _groups(found, shown, tracking),
        _pictures(shown, tracking, MAPS, "Maps", "maps of coarse SIF, prediction, target and error", small=False),
        _pictures(shown, tracking, SCATTER, "Predicted against observed", "density of pixels", small=True),
        _findings(found),
        _provenance(found),
    ]
    if len(shown) < len(found.arms):
        left_out = f"Charts and pictures show the {len(shown)} best of {len(found.arms)} arms; tables have all."
        parts[0] = Part(parts[0].heading, [*parts[0].texts, left_out], parts[0].charts, parts[0].tables)
    kept = [part for part in parts if part.charts or part.tables or part.pictures or part.texts]
    return PageSection(at, found.ground, found.verdict, kept)


def _arms(found: Compared) -> Part:
    study, rows, units = found.study, found.rows, found.units
    heads, cells = arm_tables.score_cells(study, rows, units)
    lines = []
    for row, line in zip(rows, cells, strict=True):
        sure = number(row, "baseline_p_holm") < 0.05
        mark = ("better" if number(row, "baseline_difference") < 0 else "worse") if sure else ""
        marks = [mark if head.startswith("RMSE - ") else "" for head in heads]
        lines.append(TableRow(line, "reference" if row["arm"] == study.baseline else "", marks))
    scores = Grid("Scores", heads, lines, " ".join([MEANING, *found.notes]))
    costs = Grid("Cost", *_grid(arm_tables.cost_cells(rows)), "Means of one training (one fold and seed) each.")
    compared = [row for row in rows if "baseline_difference" in row]
    if not compared:
        return Part("Arms", tables=[scores, costs])
    points: list[Point] = [
        (str(row["arm"]), number(row, "baseline_difference"), number(row, "baseline_low"), number(row, "baseline_high"))
        for row in sorted(compared, key=lambda row: number(row, "baseline_difference"))
    ]
    label = f"RMSE less that of {study.baseline} ({units}); left is better"
    draw = partial(comparison_figures.forest, points, label, 0.0)
    alt = f"Dots with whiskers: RMSE of {len(points)} arms less that of {study.baseline}, with 95 % interval"
    drawn = chart(draw, alt, "Dots: differences; whiskers: 95 % intervals.")
    return Part("Arms", [DIFFERENCES], [drawn], [scores, costs])


def _structure(found: Compared) -> Part:
    heads, cells = arm_tables.structure_cells(found.study, found.rows)
    styles = ["reference" if row["arm"] == found.study.baseline else "" for row in found.rows] if cells else []
    lines = [TableRow(line, style) for line, style in zip(cells, styles, strict=True)]
    caption = " ".join([STRUCTURE, *arm_tables.structure_faults(found.rows)])
    return Part("Structure", tables=[Grid("Structure of the maps", heads, lines, caption)] if lines else ())


def _choices(found: Compared) -> Part:
    if not found.effects:
        return Part("Which choice matters")
    texts = [
        "Each key whose value differs between arms, the largest effect first. A value is compared with the first one "
        "over those settings of all other choices that both were tried with; '-': there are none, so that these arms "
        "cannot tell.",
        *(f"{e.key} cannot be told from {_followers(e)}." for e in found.effects if e.follows),
    ]
    charts: list[Chart] = []
    if any(level.difference for effect in found.effects for level in effect.levels):
        draw = partial(comparison_figures.effects, found.effects, f"difference of RMSE ({found.units}); left is better")
        alt = f"Dots with whiskers: effects of {', '.join(effect.key for effect in found.effects)} on RMSE"
        charts = [chart(draw, alt, "Dots: differences to the first value of a key; whiskers: 95 % intervals.")]
    tables = [Grid(e.key, *_grid(arm_tables.effect_cells(e, found.units))) for e in found.effects]
    return Part("Which choice matters", texts, charts, tables)


def _followers(effect: Effect) -> str:
    """Keys that follow, those of the leader's own section in one word."""
    section = effect.key.partition(".")[0] + "."
    own = [key for key in effect.follows if key.startswith(section)]
    others = [key for key in effect.follows if not key.startswith(section)]
    return ", ".join([*others, *([f"{len(own)} other keys of {section}*"] if len(own) > 2 else own)])


def _curves(found: Compared, arms: Sequence[Arm], tracking: Tracking) -> Part:
    charts = []
    for metric, title in CURVES.items():
        by_arm = {arm.name: curve for arm in arms if (curve := _curve(arm, metric, tracking))}
        if by_arm:
            ylabel = title if "loss" in metric else f"{title} ({found.units})"
            draw = partial(comparison_figures.curves, by_arm, ylabel)
            alt = f"Lines: {title} by epoch of {', '.join(by_arm)}"
            caption = (
                f"{title[0].upper()}{title[1:]} by epoch: mean (line) and range (band) over seeds and folds; one that "
                "stopped early counts on with its last value."
            )
            charts.append(chart(draw, alt, caption))
    return Part("Learning curves", charts=charts)


def _curve(arm: Arm, metric: str, tracking: Tracking) -> Curve | None:
    """Mean, lowest and highest by epoch over the parts of an arm that logged the metric; None below two epochs."""
    parts = []
    for run in arm.parts:
        if metric in run.data.metrics:
            logged = client(tracking).get_metric_history(run.info.run_id, metric)
            parts.append({entry.step: entry.value for entry in logged if entry.value == entry.value})
    epochs = sorted({epoch for part in parts for epoch in part})
    if len(epochs) < 2:
        return None
    columns = []
    last: list[float | None] = [None] * len(parts)
    for epoch in epochs:
        last = [part.get(epoch, before) for part, before in zip(parts, last, strict=True)]
        columns.append([value for value in last if value is not None])
    middle, low, high = ([reduce(column) for column in columns] for reduce in (mean, min, max))
    return epochs, middle, low, high


def _groups(found: Compared, arms: Sequence[Arm], tracking: Tracking) -> Part:
    """Errors by kinds of ground, of arms whose runs all kept them."""
    sums: dict[str, dict[str, dict[str, Sums]]] = defaultdict(lambda: defaultdict(dict))  # kind, group, arm
    for arm in arms:
        if not all("errors_by.json" in artifact_names(client(tracking), run) for run in arm.runs):
            continue
        for run in arm.runs:
            for kind, groups in artifact_json(tracking, run, "errors_by.json").items():
                for group, by_name in groups.items():
                    ours = Sums.from_dict(by_name["model"])
                    known = sums[kind][group]
                    known[arm.name] = known[arm.name] + ours if arm.name in known else ours
    charts, tables = [], []
    for kind, groups in sums.items():
        finished = {g: {arm: part.finish() for arm, part in by_arm.items()} for g, by_arm in groups.items()}
        names = list(dict.fromkeys(arm for by_arm in finished.values() for arm in by_arm))
        runs = {arm.name: len({found.seed for found in arm.outcomes}) for arm in arms}
        counts = [(g, round(max(s["n"] / runs[arm] for arm, s in by_arm.items()))) for g, by_arm in finished.items()]
        rmse = {n: [by_arm[n]["rmse"] if n in by_arm else float("nan") for by_arm in finished.values()] for n in names}
        draw = partial(comparison_figures.by_group, counts, rmse, f"RMSE ({found.units})")
        alt = f"Marks: RMSE by {kind} ({', '.join(groups)}) of {len(names)} arms"
        charts.append(chart(draw, alt, f"RMSE by {kind}; n: pixels."))
        heads = ["arm", *groups]
        cells = [[n, *("-" if v != v else f"{v:.4f}" for v in values)] for n, values in rmse.items()]
        tables.append(Grid(f"RMSE by {kind}", *_grid((heads, cells)), f"RMSE [{found.units}] by {kind}."))
    return Part("Errors by kinds of ground", charts=charts, tables=tables)


def _pictures(arms: Sequence[Arm], tracking: Tracking, path: str, heading: str, what: str, *, small: bool) -> Part:
    """One picture an arm, of the first of its runs that has it."""
    pictures: list[Picture] = []
    for arm in arms:
        for run in (*arm.runs, *arm.parts):
            if path in artifact_names(client(tracking), run, "figures"):
                content = Path(client(tracking).download_artifacts(run.info.run_id, path)).read_bytes()
                caption = f"{arm.name} (run {run.info.run_id[:8]}, seed {run.data.params.get('seed', '-')})"
                pictures.append(picture(content, f"{arm.name}: {what}", caption))
                break
    return Part(heading, pictures=pictures, small=small)


def _findings(found: Compared) -> Part:
    rows = [TableRow([str(row["arm"]), str(row["findings"]) or "no finding"]) for row in found.rows]
    return Part("Audit", tables=[Grid("Findings of the audit", ["arm", "findings"], rows, text=True)])


def _provenance(found: Compared) -> Part:
    heads = ["run", "arm", "seed", "fold", "commit", "cube", "started (UTC)", "took [s]", "command"]
    rows = []
    for arm in found.arms:
        for run in arm.runs:
            tags, params, info = run.data.tags, run.data.params, run.info
            started = datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(" ", "seconds").split("+")[0]
            took = f"{(info.end_time - info.start_time) / 1000:.0f}" if info.end_time else "-"
            where = [params.get("seed", "-"), params.get("split.folds", "-"), tags.get("git_commit", "unknown")]
            note = tags.get(MLFLOW_RUN_NOTE, "-").strip("`")
            rows.append(
                TableRow([info.run_id, arm.name, *where, tags.get("cube_hash", "unknown"), started, took, note])
            )
    return Part("Provenance", tables=[Grid("Runs", heads, rows, "MLflow's run ids.", text=True)])


def _grid(table: tuple[Sequence[str], Sequence[Sequence[str]]]) -> tuple[Sequence[str], list[TableRow]]:
    heads, cells = table
    return heads, [TableRow(line) for line in cells]


def ground(tested: Mapping[str, str | None]) -> str:
    """Where runs were tested, as a heading."""
    split = [f"{key.removeprefix('split.')} {value}" for key, value in sorted(tested.items()) if "split." in key]
    cube = (tested.get("cube_hash") or "unknown")[:8]
    return f"{tested.get('window')} (cube {cube}; split {', '.join(split) or '-'})"
