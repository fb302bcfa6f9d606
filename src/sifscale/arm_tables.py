"""The arms of a comparison as tables: cells as text for terminal and page, every number for CSV, booktabs for LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.table import Table

from sifscale.arms import COSTS, REFERENCES, Row, number
from sifscale.config import Study
from sifscale.effects import Effect

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "−": "$-$", "±": r"$\pm$",
}  # fmt: skip

Cells = list[list[str]]


def score_cells(study: Study, rows: Sequence[Row], units: str) -> tuple[list[str], Cells]:
    """Heads and cells of scores: mean and spread over seeds and folds, difference to the reference, skill."""
    heads = ["arm", f"RMSE [{units}]"]
    compared = any("baseline_difference" in row for row in rows)
    if compared:
        heads += [f"RMSE - {study.baseline} [95 %]", "p", "p (Holm)"]
    heads += ["R2", "MAE", "bias"]
    known = [name for name in REFERENCES if any(row[f"skill_{name}"] is not None for row in rows)]
    heads += [f"skill over {name}" for name in known]
    cells = []
    for row in rows:
        line = [str(row["arm"]), _spread(row, "rmse")]
        if compared:
            line += [_difference(row), _text(row, "baseline_p", ".2g"), _text(row, "baseline_p_holm", ".2g")]
        line += [_spread(row, "r2"), _spread(row, "mae"), _spread(row, "bias", sign="+")]
        cells.append([*line, *(_text(row, f"skill_{name}", ".4f") for name in known), str(row["runs"])])
    return [*heads, "runs"], cells


def structure_cells(study: Study, rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Heads and cells of the structure of maps, with differences to the reference; no cells where no arm has any."""
    known = [row for row in rows if row.get("ssim") is not None or row.get("spectral_error") is not None]
    unit = "km" if all(row.get("pixel_km") is not None for row in known) else "px"
    heads = ["arm", "SSIM", "spectrum ratio", "spectral error", f"effective resolution [{unit}]"]
    compared = any("spectral_error_difference" in row for row in known)
    if compared:
        heads[4:4] = [f"error - {study.baseline} [95 %]"]
        heads += [f"resolution - {study.baseline} [{unit}] [95 %]"]
    cells = []
    for row in rows if known else ():
        side = number(row, "pixel_km") if unit == "km" else 1.0
        line = [str(row["arm"]), _text(row, "ssim", ".4f"), _text(row, "spectrum_ratio", ".4f")]
        line += [_text(row, "spectral_error", ".4f")]
        line += [_less(row, "spectral_error")] if compared else []
        line += [_resolution(row, side)]
        line += [_less(row, "effective_resolution_px", side, ".2f")] if compared else []
        cells.append(line)
    return heads, cells


def structure_faults(rows: Sequence[Row]) -> list[str]:
    """Why the structure of arms cannot be compared, a sentence each."""
    return [f"{row['arm']}: {row['structure_fault']}." for row in rows if "structure_fault" in row]


def cost_cells(rows: Sequence[Row]) -> tuple[list[str], Cells]:
    """Heads and cells of what arms cost: means over their runs, of one training each."""
    heads = ["arm", "parameters", "training [s]", "samples/s"]
    formats = (",.0f", ",.1f", ",.0f")
    cells = [
        [str(row["arm"]), *(_text(row, key, form) for key, form in zip(COSTS, formats, strict=True))] for row in rows
    ]
    return heads, cells


def effect_cells(effect: Effect, units: str) -> tuple[list[str], Cells]:
    """Heads and cells of the levels of a key."""
    first = effect.levels[0].value
    heads = [
        effect.key, "arms", f"RMSE of these [{units}] [95 %]", f"less {first} [95 %]", "p (Holm)", "settings in common",
    ]  # fmt: skip
    cells = []
    for level in effect.levels:
        found = level.difference
        line = [level.value, str(len(level.arms)), f"{level.rmse:.4f}{_interval(level.low, level.high)}"]
        if found:
            line += [f"{found.difference:+.4f}{_interval(found.low, found.high, '+')}", _number(level.p_holm, ".2g")]
        else:
            line += ["-", "-"]
        cells.append([*line, str(level.matched) if level.value != first else "-"])
    return heads, cells


def terminal(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], caption: str = "") -> Table:
    """A table for the terminal, the first column to the left."""
    table = Table(title=title, caption=caption or None, caption_justify="left")
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at else "left")
    for line in cells:
        table.add_row(*line)
    return table


def latex(heads: Sequence[str], cells: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A booktabs table, every text escaped; it needs ``\\usepackage{booktabs}``."""
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escape(caption)}}}",
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9:-]+', '-', label)}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape, heads)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escape, line)) + r" \\" for line in cells),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text for LaTeX; signs of numbers and exponents of units are set as such."""
    marked = "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))
    marked = re.sub(r"(?<![\w.-])-(?=\d)", "$-$", marked)
    return re.sub(r"(?<=[a-z])(-\d+)\b", r"$^{\1}$", marked)


def rows_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Every value of every row, one line a row, the columns in order of appearance; nothing is empty."""
    text = io.StringIO()
    heads = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def effect_rows(effects: Sequence[Effect]) -> list[dict[str, object]]:
    """One row a level, for CSV."""
    rows = []
    for effect in effects:
        for level in effect.levels:
            row: dict[str, object] = {"key": effect.key, "follows": " ".join(effect.follows), "value": level.value}
            row |= {"arms": len(level.arms), "rmse": level.rmse, "rmse_low": level.low, "rmse_high": level.high}
            row |= asdict(level.difference) if level.difference else {}
            rows.append({**row, "p_holm": level.p_holm if level.p_holm == level.p_holm else None})
    return rows


def _spread(row: Row, key: str, sign: str = "") -> str:
    sd = number(row, f"{key}_sd")
    return f"{number(row, key):{sign}.4f}" + (f" ± {sd:.4f}" if sd == sd else "")


def _difference(row: Row) -> str:
    if "baseline_difference" not in row:
        return "-"
    low, high = number(row, "baseline_low"), number(row, "baseline_high")
    return f"{number(row, 'baseline_difference'):+.4f}{_interval(low, high, '+')}"


def _resolution(row: Row, side: float) -> str:
    """Effective resolution in pixels of ``side``; where not even the longest wave is resolved, more than that."""
    found = number(row, "effective_resolution_px")
    if found == found or row.get("spectral_error") is None:
        return _number(side * found, ".2f")
    return f"> {side * number(row, 'longest_wave_px'):.2f}"


def _less(row: Row, score: str, unit: float = 1.0, form: str = ".4f") -> str:
    """Difference of a score to the reference, times ``unit``, with its interval."""
    found, low, high = (unit * number(row, f"{score}_{name}") for name in ("difference", "low", "high"))
    return f"{found:+{form}}{_interval(low, high, '+', form)}" if found == found else "-"


def _interval(low: float, high: float, sign: str = "", form: str = ".4f") -> str:
    return f" [{low:{sign}{form}}, {high:{sign}{form}}]" if low == low and high == high else ""


def _text(row: Row, key: str, form: str) -> str:
    return _number(number(row, key), form)


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if value == value else "-"
