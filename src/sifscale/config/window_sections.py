"""The sections that say what is studied: area, grid, period and source files, one class a kind of source."""

from __future__ import annotations

import string
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic import field_validator as check_field

from sifscale.config.types import Bands, DaysSection, Names, PositiveInt, Section

OptionalLimit = Annotated[float, Field(gt=0)] | None
Interval = Annotated[tuple[float, float], Field(strict=False)]
Resampling = Literal["nearest", "bilinear", "area"]
VegetationBand = Literal[
    "ndvi", "evi", "red", "nir", "blue", "mir", "view_zenith", "sun_zenith", "relative_azimuth",
    "day_of_year", "vi_quality", "pixel_reliability",
]  # fmt: skip


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError("must be a lower and a higher value")
    return interval


ValidRange = Annotated[Interval, AfterValidator(_rising)]


class Suggested(Section):
    """What fits a window: groups refer to it, so that any of their options works with any window."""

    crop_px: PositiveInt
    crops: PositiveInt  # a sample
    min_valid: Annotated[float, Field(ge=0, le=1)]  # share of a crop's pixels that hold a target
    block_px: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    bands: Bands
    texture: str  # the band that shows texture
    cell_px: PositiveInt | None  # edge of cells that are scored beside pixels, whose noise may hide all else


class Cover(Section):
    """Land cover, by which errors are told apart: class numbers from 0 in ``band``; null: a band of shares a class."""

    band: str | None
    classes: Names


class Window(Section):
    """What is studied; ``factor`` is the integer by which native SIF is made coarser for training.

    truth: the fine band that holds what is to be found, where a simulation knows it.
    """

    name: str
    place: str
    target: str
    units: dict[str, str]
    factor: Annotated[int, Field(ge=2)]
    truth: str | None
    cover: Cover | None
    suggested: Suggested

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the predictor bands that the cube of this window holds."""
        raise NotImplementedError

    @property
    def shape_px(self) -> tuple[int, int] | None:
        """Height and width of a sample, where the configuration alone tells them."""
        return None


class ColumnsWindow(Window):
    """A window whose source names its bands in its own way: ``columns`` holds the names that are accepted."""

    columns: dict[str, Names]
    scale: dict[str, float]

    @check_field("columns")
    @classmethod
    def _holds_target(cls, columns: dict[str, Names], info: ValidationInfo) -> dict[str, Names]:
        target = info.data.get("target")
        if target is not None and target not in columns:
            raise ValueError(f"must name the columns of window.target ('{target}')")
        return columns

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(band for band in self.columns if band != self.target)


class TableFile(DaysSection):
    path: str
    coarse_path: str | None


class TableWindow(ColumnsWindow):
    """Composites as tables, one row a cell."""

    source: Literal["table"]
    crs: str
    longitude: str
    latitude: str
    files: Annotated[tuple[TableFile, ...], Field(strict=False, min_length=1)]

    @property
    def has_given_coarse(self) -> bool:
        """Whether every file comes with a table of the coarse field."""
        return all(file.coarse_path for file in self.files)


class PatchWindow(ColumnsWindow):
    """Many small places in one file: (sample, y, x) by variable name."""

    source: Literal["patches"]
    path: str
    pixel_m: Annotated[float, Field(gt=0)]
    valid_range: dict[str, ValidRange]  # values outside are missing
    where: dict[str, Interval]  # further variables of the file, and where the target counts
    place_by: Names  # coordinates of a sample whose joint value names its place
    group_distance: Annotated[float, Field(gt=0)] | None  # metres; nearer places go into the same part of a split
    group_lattice: PositiveInt | None  # or so many neighbours along each axis of a lattice


class GridSection(Section):
    """The native grid: square cells of ``pixel`` (units of the CRS) over ``bounds`` (west, south, east, north).

    ``crs: auto`` is an equal-area projection about the middle of the bounds. Bounds in another CRS than the
    grid's are projected and rounded outwards to whole cells.
    """

    crs: str
    pixel: Annotated[float, Field(gt=0)]
    bounds: Annotated[tuple[float, float, float, float], Field(strict=False)]
    bounds_crs: str
    fine_factor: PositiveInt  # a native cell is cut into fine_factor x fine_factor fine cells

    @check_field("bounds")
    @classmethod
    def _has_extent(cls, bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        west, south, east, north = bounds
        if west >= east or south >= north:
            raise ValueError("must be west, south, east, north with west < east and south < north")
        return bounds


class PeriodSection(DaysSection):
    """Composites of ``days`` days that start anew on ``first_day`` of each year (MOD13: 1, MYD13: 9)."""

    days: PositiveInt
    first_day: Annotated[int, Field(ge=1, le=366)]


class SoundingQuality(Section):
    """Soundings beyond a limit are left out and counted; null: no limit."""

    max_cloud_fraction: Annotated[float, Field(ge=0, le=1)] | None
    max_solar_zenith_deg: OptionalLimit
    max_view_zenith_deg: OptionalLimit
    max_error: OptionalLimit
    valid_range: ValidRange


class Gridding(Section):
    """How soundings become cell means; ``min_weight``: sum of footprint shares that a cell needs."""

    method: Literal["exact", "centre", "subpixel"]
    subpixels: PositiveInt
    error_weighted: bool
    min_weight: Annotated[float, Field(ge=0)]


class Soundings(Section):
    """Swath files with footprints; ``files``: patterns below paths.raw."""

    product: Literal["troposif", "caltech", "oco"]
    files: Names
    band: Literal[735, 743]
    day_length_corrected: bool
    quality: SoundingQuality
    gridding: Gridding


class VegetationQualitySection(Section):
    """MOD13 quality: classes and bits that are kept; null: any."""

    reliability: Annotated[tuple[int, ...], Field(strict=False)] | None
    max_usefulness: Annotated[int, Field(ge=0, le=15)] | None
    modland: Annotated[tuple[int, ...], Field(strict=False)] | None
    adjacent_cloud: bool
    mixed_clouds: bool
    snow: bool
    shadow: bool
    land_only: bool


class Vegetation(Section):
    """MOD13/MYD13 granules; ``files``: patterns below paths.raw."""

    files: Names
    bands: Annotated[tuple[VegetationBand, ...], Field(strict=False, min_length=1)]
    quality: VegetationQualitySection
    resampling: Resampling
    missing_tile: Literal["nan", "stop"]


class Layer(Section):
    """A plain raster (GeoTIFF, NetCDF, Zarr) as a band; ``path`` may hold {start} and {end}, days of the composite.

    ``predictor`` false: kept in the cube (a truth to compare with), but no model reads it.
    """

    band: str
    path: str
    variable: str | PositiveInt
    nodata: float | None
    crs: str | None
    scale: float
    resampling: Resampling
    predictor: bool

    @check_field("path")
    @classmethod
    def _known_fields(cls, path: str) -> str:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(path) if name is not None}
        except ValueError:
            names = {"?"}
        if names - {"start", "end"}:
            raise ValueError("must hold no braces but {start} and {end}")
        return path


class GriddedWindow(Window):
    """Native files on a grid of one's own: footprints, MODIS granules and plain rasters."""

    grid: GridSection
    period: PeriodSection
    soundings: Soundings | None
    vegetation: Vegetation | None
    native_layers: Annotated[tuple[Layer, ...], Field(strict=False)]  # on the native grid
    fine_layers: Annotated[tuple[Layer, ...], Field(strict=False)]  # on the fine grid, and averaged to the native one
    strict: bool  # true: stop at the first bad file instead of building from the others
    tile_px: PositiveInt  # edge of a piece of work, in fine cells: sets the peak memory
    footprint_weights: PositiveInt | None  # radius, in native cells, of the fine pixels that a cell may see

    @check_field("fine_layers")
    @classmethod
    def _target_from_one_source(cls, layers: tuple[Layer, ...], info: ValidationInfo) -> tuple[Layer, ...]:
        if not {"target", "soundings", "native_layers"} <= set(info.data):
            return layers  # their own faults come first
        target = info.data["target"]
        natives = [layer.band for layer in info.data["native_layers"]]
        if (info.data["soundings"] is not None) + natives.count(target) != 1:
            raise ValueError(f"window.target ('{target}') must come from soundings or from one of native_layers")
        return layers

    @check_field("tile_px")
    @classmethod
    def _whole_cells(cls, tile_px: int, info: ValidationInfo) -> int:
        grid = info.data.get("grid")
        if grid is not None and tile_px % grid.fine_factor:
            raise ValueError(f"must be a multiple of window.grid.fine_factor ({grid.fine_factor})")
        return tile_px

    @check_field("footprint_weights")
    @classmethod
    def _has_footprints(cls, radius: int | None, info: ValidationInfo) -> int | None:
        if radius is not None and "soundings" in info.data and info.data["soundings"] is None:
            raise ValueError("must be null for a window without soundings, whose footprints are not known")
        grid = info.data.get("grid")
        fine_bands = info.data.get("vegetation") or info.data.get("fine_layers")
        if radius is not None and grid is not None and (grid.fine_factor == 1 or not fine_bands):
            raise ValueError("must be null for a window without a finer grid")
        return radius

    @property
    def bands(self) -> tuple[str, ...]:
        layers = [layer.band for layer in (*self.native_layers, *self.fine_layers) if layer.predictor]
        return tuple(dict.fromkeys([*(self.vegetation.bands if self.vegetation else ()), *layers]))

    @property
    def shape_px(self) -> tuple[int, int] | None:
        grid = self.grid
        if grid.crs != grid.bounds_crs:
            return None  # needs a projection
        west, south, east, north = grid.bounds
        return round((north - south) / grid.pixel), round((east - west) / grid.pixel)


class SatelliteWindow(GriddedWindow):
    """A gridded window on raw files that lie below paths.raw."""

    source: Literal["satellite"]


class Simulation(Section):
    """Raw files are simulated from a known truth, in the true formats, before they are read."""

    seed: Annotated[int, Field(ge=0)]
    sounding_noise: Annotated[float, Field(ge=0)]  # 1-sigma of one sounding
    cloudiness: Annotated[float, Field(ge=0, le=1)]
    fill_share: Annotated[float, Field(ge=0, lt=1)]  # of soundings that hold an undeclared fill value
    margin_km: Annotated[float, Field(gt=0)]  # the simulated world reaches this far beyond the window
    days_per_period: PositiveInt | None  # null: every day


class OsseWindow(GriddedWindow):
    """An observing system simulation experiment: a gridded window whose raw files are simulated first."""

    source: Literal["osse"]
    simulation: Simulation
