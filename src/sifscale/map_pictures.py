"""The pictures of a map, drawn and written to a folder beside it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from sifscale import figures
from sifscale.borders import CREDIT
from sifscale.evaluation_figures import power, spectra
from sifscale.map_fields import MapFields, spread
from sifscale.map_figures import Field, composite_figure, season_frames
from sifscale.map_frame import Frame, frame_of
from sifscale.map_page import page
from sifscale.structure import Structure
from sifscale.whole import remove_leftovers, take_name, temporary

PAGE, SEASON, SPECTRUM = "map.html", "season.gif", "spectrum.png"
_DATES = 24  # on the page, in the animation and in the spectrum
_SPECTRUM_PX = 512  # the square in the middle that spectra are taken from
_SPECTRUM_TILES_PX = (256, 128, 64, 32, 16)  # the first that finds a place between gaps
_FRAME_MS, _LAST_FRAME_MS = 700, 2000


def pictures_folder(path: Path) -> Path:
    """Where the pictures of the map at ``path`` go. Raises ValueError where something else is there."""
    folder = path.with_name(f"{path.stem}_pictures")
    if folder.exists() and not (folder / PAGE).is_file():
        raise ValueError(f"output: {folder} exists and holds no pictures of a map, thus not replaced; move it away")
    return folder


def draw_pictures(shown: MapFields, folder: Path, *, progress: bool) -> None:
    """Into ``folder``, whole: a figure a composite, and of all a page, spectra and, of one place, an animation.

    Page, animation and spectra are of at most `_DATES` composites, spread over all. Fields are averaged for drawing:
    memory goes by what is shown, not by the region. Nothing is written where no composite has a value.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    unnamed = temporary(folder)
    unnamed.mkdir()
    try:
        if _draw(shown, unnamed, progress):
            take_name(unnamed, folder)
    finally:
        shutil.rmtree(unnamed, ignore_errors=True)


def _draw(shown: MapFields, folder: Path, progress: bool) -> bool:
    """Whether there was anything to draw."""
    frame, about, samples = frame_of(shown.map), _provenance(shown), shown.samples()
    on_page = spread(samples, _DATES)
    layers: dict[str, dict[str, Field]] = {}
    notes = ", ".join([about["Map"], *(f"{name.lower()} {about[name][:8]}" for name in ("Run", "Cube", "Commit"))])
    for sample in tqdm(samples, desc="pictures", unit="figure", disable=None if progress else True):
        composite = shown.composite(sample, notes)
        if composite is None:
            continue
        figure = composite_figure(composite, frame, quantity=shown.quantity, units=shown.units)
        figures.save(figure, folder / f"{_file_name(shown, sample)}.png")
        if composite.filled.any():
            about["Gaps"] = "where the coarse field has no value, the map is filled from the nearest one"
        if sample in on_page:
            fields = {"coarse": composite.coarse, "map": composite.fine, shown.truth_name: composite.truth}
            name = _label(shown, sample)
            layers[f"{name} (sample {sample})" if name in layers else name] = {
                layer: field for layer, field in fields.items() if field is not None
            }
    if not layers:
        return False
    span = _draw_season(shown, layers, frame, about, folder)
    if spectrum := _spectrum(shown, on_page, frame.pixel_km, span):
        figures.save(spectrum, folder / SPECTRUM)
    return True


def _draw_season(
    shown: MapFields, layers: Mapping[str, dict[str, Field]], frame: Frame, about: dict[str, str], folder: Path
) -> float:
    """The page and, of one place, the animation; returns the span of the scale that all have."""
    common = set.intersection(*(set(fields) for fields in layers.values()))
    alike = {label: {n: f for n, f in fields.items() if n in common} for label, fields in layers.items()}
    scale = figures.limits(shown.quantity, [field for fields in alike.values() for field in fields.values()])
    title, label = f"{shown.quantity}, {about['Place']}", f"{shown.quantity} ({shown.units})"
    text = page(title, alike, frame, scale, label=label, provenance=about)
    (folder / PAGE).write_text(text, encoding="utf-8")
    if len(alike) > 1 and shown.of_one_place:
        maps = {date: fields["map"] for date, fields in alike.items()}
        first, *others = season_frames(maps, frame, scale, title=title, label=label)
        pauses = [*[_FRAME_MS] * len(others), _LAST_FRAME_MS]
        first.save(folder / SEASON, save_all=True, append_images=others, duration=pauses, loop=0)
    return scale[1] - scale[0]


def _spectrum(shown: MapFields, samples: Sequence[int], pixel_km: float | None, data_range: float) -> Figure | None:
    """Power of coarse field, map and truth in the middle of the region; None where gaps leave no place for a tile."""
    for tile_px in _SPECTRUM_TILES_PX:
        sums: dict[str, Structure] = {}
        for sample in samples:
            fields = shown.middle(sample, _SPECTRUM_PX)
            if fields is None or min(fields["map"].shape) < tile_px:
                continue
            target = fields.pop("truth" if "truth" in fields else "map")
            scored = np.isfinite(target) & np.logical_and.reduce([np.isfinite(field) for field in fields.values()])
            for name, field in fields.items():
                part = Structure.of(
                    field[None], target[None], scored[None], np.ones_like(scored)[None],
                    tile_px=tile_px, data_range=data_range,
                )  # fmt: skip
                sums[name] = sums[name] + part if name in sums else part
        found = {name: part.spectra() for name, part in sums.items() if part.tiles}
        if not any((rings["target"] > 0).any() for rings in found.values()):
            continue
        if "map" in found:
            return spectra(found, pixel_km=pixel_km, units=shown.units, target=shown.truth_name)
        rings = found["coarse"]
        by_name = {"coarse": rings["prediction"], "map": rings["target"]}
        return power(rings["wavenumber"], by_name, pixel_km=pixel_km, units=shown.units)
    return None


def _provenance(shown: MapFields) -> dict[str, str]:
    """What the page says of where a map comes from."""
    named = {
        "Map": "title", "Made by": "source", "Run": "run_id", "Cube": "cube_hash", "Commit": "git_commit",
        "Conservation": "conservation", "Made": "date_created",
    }  # fmt: skip
    place = shown.place(0) if shown.of_one_place else f"{len(set(shown.map['place'].values.tolist()))} places"
    known = {name: str(shown.map.attrs.get(key, "unknown")) for name, key in named.items()}
    return {"Place": place} | known | {"Borders": CREDIT}


def _label(shown: MapFields, sample: int) -> str:
    """By which a composite is chosen."""
    return shown.date(sample) if shown.of_one_place else f"{shown.place(sample)}, {shown.date(sample)}"


def _file_name(shown: MapFields, sample: int) -> str:
    """Sorts by sample, and differs for each."""
    day = np.datetime_as_string(shown.map["time_start"].values[sample], "D")
    place = re.sub(r"[^\w.-]+", "-", shown.place(sample))
    return f"{sample:04d}_{place}_{day}"
