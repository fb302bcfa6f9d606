"""Rules between sections: what each of them allows alone, but not together."""

from __future__ import annotations

from sifscale.config.model_sections import (
    CNNDenseConfig,
    LightUseConfig,
    NIRvRatioConfig,
    PersistenceConfig,
    SIFNetConfig,
    UNetConfig,
)
from sifscale.config.sections import (
    FOOTPRINT_SIF,
    NIRV_SOURCES,
    WITHOUT_TRUTH,
    BlocksSplit,
    PlacesSplit,
    RunConfig,
    SamplesSplit,
    SlidingCrop,
    TimeSplit,
)
from sifscale.config.uncertainty_sections import (
    EnsembleUncertainty,
    HeteroscedasticUncertainty,
    McDropoutUncertainty,
    NoUncertainty,
    QuantileUncertainty,
)
from sifscale.config.window_sections import GriddedWindow, PatchWindow, TableWindow

READ_FINE_TRUTH = (  # models that learn from the target itself, whatever the loss
    "ridge",
    "random_forest",
    "gradient_boosting",
    "deconvolution",
    "persistence",
)

NETWORKS = UNetConfig, SIFNetConfig, CNNDenseConfig

LBP_DIRECTIONAL = (
    "default",
    "nri_uniform",
)  # codes that name directions: they change when a picture is turned


def relation_faults(run: RunConfig) -> list[str]:
    """Rules between groups, each broken one as a line ``key: rule (found value)``."""
    return [
        *_crop_faults(run),
        *_feature_faults(run),
        *_model_faults(run),
        *_block_mean_faults(run),
        *_training_faults(run),
        *_uncertainty_faults(run),
        *_level_faults(run),
        *_footprint_faults(run),
        *_tracking_faults(run),
    ]


def _crop_faults(run: RunConfig) -> list[str]:
    faults = []
    size, model = run.crop.size, run.model
    whole = size == run.window.suggested.crop_px  # a tile of the window, which has the size it has
    if isinstance(model, UNetConfig) and not (model.any_size or whole) and size % 2 ** len(model.widths):
        faults.append(
            f"crop.size: must be a multiple of 2**depth = {2 ** len(model.widths)} for model.widths of "
            f"{len(model.widths)} levels (found {size})"
        )
    if isinstance(model, CNNDenseConfig) and size < 8:
        faults.append(f"crop.size: must be at least 8 for model.name=cnn_dense (found {size})")
    if size % run.coarse.block_px:
        faults.append(
            f"crop.size: must be a multiple of coarse.factor = {run.coarse.factor}, so that no coarse cell is cut "
            f"(found {size})"
        )
    if isinstance(run.crop, SlidingCrop) and run.crop.stride % run.coarse.block_px:
        factor, stride = run.coarse.factor, run.crop.stride
        faults.append(f"crop.stride: must be a multiple of coarse.factor = {factor} (found {stride})")
    finer = run.finer_by(run.level)
    if isinstance(run.split, BlocksSplit) and size > finer * min(run.split.block):
        faults.append(
            f"crop.size: must not exceed the block, split.block = {list(run.split.block)} (found {size})"
        )
    shape_px = run.window.shape_px
    if shape_px and size > finer * min(shape_px):
        faults.append(f"crop.size: must not exceed the sample of {shape_px[0]} x {shape_px[1]} px (found {size})")
    if run.crop.augment and any(lbp.method in LBP_DIRECTIONAL for lbp in run.features.lbp):
        faults.append(
            "crop.augment: must be false where features.lbp has a method that names directions (default, nri_uniform), "
            "since turning a picture would turn its codes (found True)"
        )
    return faults


def _feature_faults(run: RunConfig) -> list[str]:
    faults = []
    window, features = run.window, run.features
    native = window.bands
    for index, parts in (("ndvi", {"red", "nir"}), ("nirv", {"ndvi", "nir"})):
        native += (index,) if parts <= set(native) and index not in native else ()
    known = ("coarse", *native, *(f"coarse_{band}" for band in native))
    asked = [(f"features.bands[{i}]", band) for i, band in enumerate(features.bands) if band != FOOTPRINT_SIF]
    asked += [(f"features.lbp[{i}].source", lbp.source) for i, lbp in enumerate(features.lbp)]
    if features.local_stats:
        asked += [(f"features.local_stats.bands[{i}]", b) for i, b in enumerate(features.local_stats.bands)]
    for key, band in asked:
        if band == window.target:
            faults.append(f"{key}: must not be the target of the window; use 'coarse' (found '{band}')")
        elif band not in known:
            faults.append(
                f"{key}: must be coarse, {', '.join(native)} or coarse_ before one of these (found '{band}')"
            )
    legacy = features.legacy
    if legacy and legacy.lbp and legacy.lbp_source not in ("coarse", *features.bands):
        faults.append(
            f"features.legacy.lbp_source: must be coarse or one of features.bands, {', '.join(features.bands)} "
            f"(found '{legacy.lbp_source}')"
        )
    if run.coarse.method == "given" and not (isinstance(window, TableWindow) and window.has_given_coarse):
        faults.append(
            "coarse.method: window has no given coarse field; use block_mean or moving_mean (found 'given')"
        )
    if run.coarse.method == "moving_mean" and run.coarse.factor % 2 == 0:
        faults.append(f"coarse.factor: must be odd for coarse.method=moving_mean (found {run.coarse.factor})")
    if features.select and (features.select.top is None) == (features.select.min_correlation is None):
        found = features.select.model_dump()
        faults.append(f"features.select: must give either top or min_correlation (found {found})")
    return faults


def _light_use_faults(run: RunConfig, model: LightUseConfig) -> list[str]:
    faults, bands = [], run.features.bands
    drivers = {key: getattr(model, key) for key in ("vegetation", "evapotranspiration", "temperature")}
    named = [band for band in drivers.values() if band]
    for key, band in drivers.items():
        if band is not None and (band not in bands or band == "coarse" or named.count(band) > 1):
            faults.append(
                f"model.{key}: must be one of features.bands, {', '.join(bands)}, not coarse and not named twice "
                f"(found '{band}')"
            )
    if run.normalisation.method != "zscore":
        faults.append(
            f"normalisation.method: must be zscore for model.name=lue, so that gaps are means (found "
            f"'{run.normalisation.method}')"
        )
    return faults


def _model_faults(run: RunConfig) -> list[str]:
    faults, name = [], run.model.name
    if isinstance(run.model, LightUseConfig):
        faults += _light_use_faults(run, run.model)
    bands, legacy = run.features.bands, run.features.legacy
    if isinstance(run.model, NIRvRatioConfig):
        if not any(set(source) <= set(bands) for source in NIRV_SOURCES):
            wanted = ", or ".join(" and ".join(source) for source in NIRV_SOURCES)
            faults.append(f"features.bands: must hold {wanted} for model.name={name} (found {list(bands)})")
    if isinstance(run.model, NIRvRatioConfig | LightUseConfig):
        if run.features.select:
            found = run.features.select.model_dump()
            faults.append(
                f"features.select: must be null for model.name={name}, whose bands it may drop (found {found})"
            )
        if legacy and legacy.minmax_everything:
            faults.append(
                f"features.legacy.minmax_everything: must be false for model.name={name}, which reads physical values "
                "(found True)"
            )
        if run.coarse.method != "block_mean":
            faults.append(
                f"coarse.method: must be block_mean for model.name={name}, which compares block means "
                f"(found '{run.coarse.method}')"
            )
    if isinstance(run.model, PersistenceConfig):
        if run.split.name != "time":
            faults.append(
                f"split.name: must be time for model.name={name}, which reads composites of the train part "
                f"at tested places (found '{run.split.name}')"
            )
        if isinstance(run.window, PatchWindow):
            faults.append(
                f"window.source: must not be patches for model.name={name}: which patches show one place is not "
                "known (found 'patches')"
            )
    return faults


def _block_mean_faults(run: RunConfig) -> list[str]:
    faults, loss = [], run.trainer.loss
    if run.coarse.method != "block_mean":
        needs = {
            f"conservation={run.conservation}": run.conservation != "none",
            "conservation_weight above 0": run.conservation_weight > 0,
            "trainer.loss=aggregate": loss == "aggregate",
        }
        faults += [
            f"coarse.method: must be block_mean for {name}: other coarse fields are no means of cells "
            f"(found '{run.coarse.method}')"
            for name, needed in needs.items()
            if needed
        ]
    if loss in WITHOUT_TRUTH and run.model.name in READ_FINE_TRUTH:
        faults.append(
            f"trainer.loss: must not be {loss}, which stands for training without fine truth, for model.name="
            f"{run.model.name}, which learns from it (found '{loss}')"
        )
    return faults


def _training_faults(run: RunConfig) -> list[str]:
    faults = []
    cell_px, block_px = run.evaluation.cell_px, run.coarse.block_px
    if cell_px and block_px % cell_px:
        faults.append(
            f"evaluation.cell_px: must divide the coarse block of {block_px} px, so that no cell is cut (found "
            f"{cell_px})"
        )
    if run.trainer.loss == "cells" and not cell_px:
        faults.append("trainer.loss: must not be cells where evaluation.cell_px is null (found 'cells')")
    ensemble = isinstance(run.uncertainty, EnsembleUncertainty)  # then the fault is to ask for one
    if run.trainer.members > 1 and not isinstance(run.model, NETWORKS) and not ensemble:
        faults.append(
            f"trainer.members: must be 1 for model.name={run.model.name}, which is no network (found "
            f"{run.trainer.members})"
        )
    return faults


def _uncertainty_faults(run: RunConfig) -> list[str]:
    """Who can tell its own error, and what that is calibrated on."""
    chosen, model, faults = run.uncertainty, run.model, []
    name, loss, split = chosen.name, run.trainer.loss, run.split
    if isinstance(chosen, NoUncertainty):
        return []
    if name != "constant" and not isinstance(model, NETWORKS):
        faults.append(
            f"uncertainty.name: must be none or constant for model.name={model.name}, which is no network (found "
            f"'{name}')"
        )
    elif isinstance(chosen, EnsembleUncertainty) and run.trainer.members < 2:
        faults.append(f"trainer.members: must be 2 or more for uncertainty.name=ensemble (found {run.trainer.members})")
    elif isinstance(chosen, McDropoutUncertainty):
        if not isinstance(model, UNetConfig):
            faults.append(
                f"uncertainty.name: must not be mc_dropout for model.name={model.name}, which has no dropout (found "
                f"'{name}')"
            )
        elif model.dropout:
            faults.append(
                "model.dropout: must be 0 for uncertainty.name=mc_dropout, whose uncertainty.dropout takes its place "
                f"(found {model.dropout})"
            )
        if run.trainer.members > 1:
            faults.append(
                "trainer.members: must be 1 for uncertainty.name=mc_dropout, whose members are passes (found "
                f"{run.trainer.members})"
            )
    elif isinstance(chosen, HeteroscedasticUncertainty | QuantileUncertainty) and loss != "mse":
        faults.append(
            f"trainer.loss: must be mse for uncertainty.name={name}, which puts a loss of its own in its place (found "
            f"'{loss}')"
        )
    if loss in WITHOUT_TRUTH:
        faults.append(
            f"uncertainty.name: must be none for trainer.loss={loss}, which does without the fine truth that "
            f"calibration reads (found '{name}')"
        )
    if split.name == "legacy" or (isinstance(split, TimeSplit | SamplesSplit) and not split.validation_share):
        key = "split.name: must not be legacy" if split.name == "legacy" else "split.validation_share: must be above 0"
        found = getattr(split, "validation_share", "'legacy'")
        faults.append(f"{key} for uncertainty.name={name}, which is calibrated on the validation part (found {found})")
    return faults


def _level_faults(run: RunConfig) -> list[str]:
    """Learning on the fine grid needs a truth there, and native cells as its coarse blocks."""
    if run.level == "native":
        return []
    window, faults = run.window, []
    if not isinstance(window, GriddedWindow) or window.truth is None:
        return [f"level: must be native for window {window.name}, which has no fine truth (found 'fine')"]
    if run.coarse.block_px != window.grid.fine_factor:
        faults.append(
            f"coarse: must be block_mean with factor {window.grid.fine_factor} of the fine grid for level=fine "
            f"(found {run.coarse.method}, {run.coarse.factor})"
        )
    if run.split.name == "legacy" or isinstance(run.model, PersistenceConfig):
        faults.append("level: must be native for split=legacy and model=persistence (found 'fine')")
    return faults


def _footprint_faults(run: RunConfig) -> list[str]:
    """What sees native cells through their footprints needs the weights of fine pixels in them."""
    by_loss, model = run.trainer.loss == "footprints", run.model
    by_ratio = isinstance(model, NIRvRatioConfig) and model.ratio == "footprint"
    by_band = FOOTPRINT_SIF in run.features.bands
    by_name = {"trainer.loss=footprints": by_loss, "model.ratio=footprint": by_ratio}
    names = by_name | {f"the band {FOOTPRINT_SIF}": by_band}
    name, window = next((name for name, wanted in names.items() if wanted), None), run.window
    if name is None:
        return []
    faults = []
    if by_band and (by_loss or by_ratio):
        faults.append(
            f"features.bands: must be without {FOOTPRINT_SIF} for {name}, which has the footprints already (found it)"
        )
    if run.level != "fine":
        faults.append(f"level: must be fine for {name}, which weighs fine pixels (found '{run.level}')")
    if by_band and not any(set(source) <= set(run.features.bands) for source in NIRV_SOURCES):
        wanted = ", or ".join(" and ".join(source) for source in NIRV_SOURCES)
        faults.append(f"features.bands: must hold {wanted} for {name} (found {', '.join(run.features.bands)})")
    radius = window.footprint_weights if isinstance(window, GriddedWindow) else None
    if radius is None:
        faults.append(
            f"window.footprint_weights: must be given for {name}, such as 2 for footprints of 7 km over cells of 4 km, "
            f"in a window with soundings (found None)"
        )
    if by_loss and run.crop.augment:
        faults.append(f"crop.augment: must be false for {name}, since footprints are not turned (found True)")
    support_px = (2 * radius + 1) * run.coarse.block_px if radius else 0
    if by_loss and run.crop.size < support_px:
        faults.append(
            f"crop.size: must be at least {support_px} for {name}, or no cell's footprints lie inside (found "
            f"{run.crop.size})"
        )
    return faults


def _tracking_faults(run: RunConfig) -> list[str]:
    """A champion is chosen by validation, which has to be the same for all, and of models that are logged."""
    name, faults = run.tracking.register_as, []
    if name and not run.tracking.log_model:
        faults.append(f"tracking.register_as: must be null where tracking.log_model is false (found '{name}')")
    if name and isinstance(run.split, BlocksSplit | PlacesSplit) and run.split.folds == "all":
        faults.append(
            f"tracking.register_as: must be null for split.folds=all, whose runs have no validation part in common "
            f"(found '{name}')"
        )
    return faults
