"""The two texts by which HDF-EOS describes a granule, in the Object Description Language (ODL)."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np

from sifscale.grid import Grid
from sifscale.sources.sinusoidal import SPHERE_RADIUS_M

Entry = tuple[str, str]  # name and value of an ODL object, the value as ODL writes it


def struct_metadata(grid_name: str, grid: Grid, fields: Sequence[Entry]) -> str:
    """StructMetadata.0: the sinusoidal grid and its fields, given as (name, type such as INT16)."""
    lines = ["GROUP=SwathStructure", "END_GROUP=SwathStructure", "GROUP=GridStructure", "\tGROUP=GRID_1"]
    east, south = grid.west + grid.width * grid.dx, grid.north - grid.height * grid.dy
    lines += [
        f"\t\t{entry}"
        for entry in (
            f'GridName="{grid_name}"',
            f"XDim={grid.width}",
            f"YDim={grid.height}",
            f"UpperLeftPointMtrs=({grid.west:.6f},{grid.north:.6f})",
            f"LowerRightMtrs=({east:.6f},{south:.6f})",
            "Projection=GCTP_SNSOID",
            f"ProjParams=({SPHERE_RADIUS_M:.6f}{',0' * 12})",
            "SphereCode=-1",
            "GROUP=Dimension",
            "END_GROUP=Dimension",
            "GROUP=DataField",
        )
    ]
    for number, (name, kind) in enumerate(fields, 1):
        lines += [
            f"\t\t\tOBJECT=DataField_{number}",
            f'\t\t\t\tDataFieldName="{name}"',
            f"\t\t\t\tDataType=DFNT_{kind}",
            '\t\t\t\tDimList=("YDim","XDim")',
            f"\t\t\tEND_OBJECT=DataField_{number}",
        ]
    lines += ["\t\tEND_GROUP=DataField", "\t\tGROUP=MergedFields", "\t\tEND_GROUP=MergedFields", "\tEND_GROUP=GRID_1"]
    lines += ["END_GROUP=GridStructure", "GROUP=PointStructure", "END_GROUP=PointStructure", "END", ""]
    return "\n".join(lines)


def core_metadata(
    name: str,
    h: int,
    v: int,
    grid: Grid,
    period: tuple[datetime.date, datetime.date],
    fields: Sequence[str],
    cloud_percent: int,
) -> str:
    """CoreMetadata.0: what the archive's catalogue knows of a granule; a part of the real one's entries.

    fields: names of the data sets; cloud_percent: share of cloudy pixels, the same for all of them.
    """
    produced = f"{datetime.datetime.strptime(name.split('.')[4], '%Y%j%H%M%S'):%Y-%m-%dT%H:%M:%S.000Z}"
    measured = [
        _object(
            "MEASUREDPARAMETERCONTAINER",
            _value("PARAMETERNAME", _text(field), number)
            + _group("QASTATS", _value("QAPERCENTCLOUDCOVER", str(cloud_percent), number), number),
            number,
        )
        for number, field in enumerate(fields, 1)
    ]
    extra = [("HORIZONTALTILENUMBER", f"{h:02d}"), ("VERTICALTILENUMBER", f"{v:02d}"), ("TileID", f"51{h:03d}{v:03d}")]
    additional = [
        _object(
            "ADDITIONALATTRIBUTESCONTAINER",
            _value("ADDITIONALATTRIBUTENAME", _text(key), number)
            + _group("INFORMATIONCONTENT", _value("PARAMETERVALUE", _text(value), number), number),
            number,
        )
        for number, (key, value) in enumerate(extra, 1)
    ]
    first, last = period
    body = (
        _group(
            "ECSDATAGRANULE",
            _value("LOCALGRANULEID", _text(name))
            + _value("DAYNIGHTFLAG", _text("Day"))
            + _value("PRODUCTIONDATETIME", _text(produced))
            + _value("LOCALVERSIONID", _text("simulated")),
        )
        + _group("MEASUREDPARAMETER", "".join(measured))
        + _group("COLLECTIONDESCRIPTIONCLASS", _value("SHORTNAME", _text("MOD13A2")) + _value("VERSIONID", "61"))
        + _spatial_domain(grid)
        + _group(
            "RANGEDATETIME",
            _value("RANGEBEGINNINGTIME", _text("00:00:00"))
            + _value("RANGEENDINGTIME", _text("23:59:59"))
            + _value("RANGEBEGINNINGDATE", _text(first.isoformat()))
            + _value("RANGEENDINGDATE", _text(last.isoformat())),
        )
        + _group("ADDITIONALATTRIBUTES", "".join(additional))
    )
    return "\n" + _group("INVENTORYMETADATA", "GROUPTYPE = MASTERGROUP\n" + body) + "END\n"


def _spatial_domain(grid: Grid) -> str:
    """The tile's corners in degrees, clockwise from the south-west."""
    east, south = grid.west + grid.width * grid.dx, grid.north - grid.height * grid.dy
    x = np.array([grid.west, grid.west, east, east])
    latitude = np.array([south, grid.north, grid.north, south]) / SPHERE_RADIUS_M
    longitude = np.rad2deg(x / (SPHERE_RADIUS_M * np.cos(latitude)))
    rings = [("LATITUDE", np.rad2deg(latitude)), ("LONGITUDE", longitude), ("SEQUENCENO", np.arange(1, 5))]
    points = "".join(
        _value(f"GRINGPOINT{key}", f"({', '.join(map(str, values.tolist()))})", 1) for key, values in rings
    )
    ring = _group("GRING", _value("EXCLUSIONGRINGFLAG", _text("N"), 1), 1)
    container = _object("GPOLYGONCONTAINER", ring + _group("GRINGPOINT", points, 1), 1)
    horizontal = _group("HORIZONTALSPATIALDOMAINCONTAINER", _group("GPOLYGON", container))
    return _group("SPATIALDOMAINCONTAINER", horizontal)


def _text(value: str) -> str:
    return f'"{value}"'


def _value(name: str, value: str, number: int | None = None) -> str:
    count = value.count(",") + 1 if value.startswith("(") else 1
    return _block("OBJECT", name, f"NUM_VAL = {count}\n", number, f"VALUE = {value}\n")


def _object(name: str, body: str, number: int) -> str:
    return _block("OBJECT", name, "", number, body)


def _group(name: str, body: str, number: int | None = None) -> str:
    return _block("GROUP", name, "", number, body)


def _block(kind: str, name: str, head: str, number: int | None, body: str) -> str:
    place = "" if number is None else f'CLASS = "{number}"\n'
    inner = "".join(f"  {line}\n" if line else "\n" for line in (head + place + body).splitlines())
    return f"{kind:<22} = {name}\n{inner}{'END_' + kind:<22} = {name}\n\n"
