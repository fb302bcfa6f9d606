"""Make src/sifscale/borders.npz, the coastlines and borders that map figures show.

    npm pack world-atlas@2.0.2 us-atlas@3.0.1
    python tools/make_borders.py world-atlas-2.0.2.tgz us-atlas-3.0.1.tgz

Both packages are TopoJSON of data in the public domain: Natural Earth 4.1.0, 1:10m, admin 0 (naturalearthdata.com), and
the US Census Bureau's cartographic boundary files of 2017, states (census.gov). The United States come from the latter,
which has the shores of the Great Lakes. Lines are simplified by up to 0.015 degrees (1.7 km) and rounded to 0.002
degrees: the file stays small and is fine enough for pixels of a kilometre.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from sifscale.borders import CREDIT

OUTPUT = Path(__file__).parents[1] / "src" / "sifscale" / "borders.npz"
UNITED_STATES = {"840", "630"}  # ISO 3166: with Puerto Rico, which the Census counts among the states
TOLERANCE_DEG, STEP_DEG = 0.015, 0.002
LONGEST_DEG = 60.0  # what 16 bits hold in steps

Line = NDArray[np.float64]


def read(package: Path, name: str) -> dict[str, Any]:
    """A TopoJSON file of an npm package."""
    with tarfile.open(package) as archive:
        member = archive.extractfile(f"package/{name}")
        assert member is not None
        topology: dict[str, Any] = json.load(member)
    return topology


def lines(topology: dict[str, Any]) -> list[Line]:
    """All arcs as longitude and latitude (n, 2): TopoJSON holds running differences of whole numbers."""
    scale, translate = topology["transform"]["scale"], topology["transform"]["translate"]
    return [np.cumsum(np.array(arc), axis=0) * scale + translate for arc in topology["arcs"]]


def owners(topology: dict[str, Any], name: str) -> dict[int, set[str]]:
    """By number of an arc, the members of a collection whose outline it is part of."""
    found: dict[int, set[str]] = {}
    for place, geometry in enumerate(topology["objects"][name]["geometries"]):
        for number in _numbers(geometry.get("arcs", [])):
            found.setdefault(number, set()).add(geometry.get("id", f"unnamed {place}"))
    return found


def _numbers(arcs: list[Any]) -> Iterator[int]:
    for entry in arcs:
        if isinstance(entry, list):
            yield from _numbers(entry)
        else:
            yield entry if entry >= 0 else ~entry  # a negative number: the arc is walked backwards


def simplified(line: Line) -> NDArray[np.int32]:
    """Points in steps of the grid, with as many as the tolerance and 16 bits need."""
    whole = np.column_stack([np.unwrap(line[:, 0], period=360), line[:, 1]])  # not all the way round at 180 degrees
    few = shapely.simplify(shapely.LineString(whole), TOLERANCE_DEG, preserve_topology=False)
    if few.is_empty or (few.is_closed and shapely.get_num_points(few) < 4) or few.length == 0:  # an islet, now flat
        return np.empty((0, 2), np.int32)
    points = np.rint(shapely.get_coordinates(shapely.segmentize(few, LONGEST_DEG)) / STEP_DEG).astype(np.int32)
    moves = np.concatenate([[True], np.diff(points, axis=0).any(axis=1)])
    return np.asarray(points[moves])


def main(world_package: Path, us_package: Path) -> None:
    world, states = read(world_package, "countries-10m.json"), read(us_package, "states-10m.json")
    by_arc = owners(world, "countries")
    us_lines, shared = lines(states), Counter({n: len(who) for n, who in owners(states, "states").items()})
    outlines = [line for number, line in enumerate(lines(world)) if not by_arc.get(number, set()) & UNITED_STATES]
    outlines += [line for number, line in enumerate(us_lines) if shared[number] == 1]
    inner = [line for number, line in enumerate(us_lines) if shared[number] == 2]
    kept = [[points for line in group if len(points := simplified(line)) > 1] for group in (outlines, inner)]
    every = [points for group in kept for points in group]
    np.savez_compressed(
        OUTPUT,
        start=np.array([points[0] for points in every]),
        steps=np.concatenate([np.diff(points, axis=0) for points in every]).astype(np.int16).T,
        lengths=np.array([len(points) for points in every], dtype=np.int32),
        states=np.array(len(kept[1])),  # the last lines
        step_deg=np.array(STEP_DEG),
        source=np.array(CREDIT),
    )
    print(f"{OUTPUT}: {len(every)} lines, {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
