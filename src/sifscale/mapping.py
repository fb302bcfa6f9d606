"""All tiles of a map, one after another, into the store; what is there already is left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
from tqdm import tqdm

from sifscale.products import Unfinished
from sifscale.said_tiles import SaidTiles
from sifscale.tile_fields import FieldSource, TileFields
from sifscale.tile_prediction import ERROR_BARS, FLAGS, Layout, MappedTile, Residuals, Said, TilePredictor
from sifscale.tiles import Tile

Job = tuple[int, Tile]  # sample and tile


def map_tiles(
    predictor: TilePredictor, source: FieldSource, layout: Layout, made: Unfinished, batch_size: int, progress: bool
) -> dict[int, Residuals]:
    """Predict all tiles of all samples that ``made`` lacks; returns residuals before conservation by sample.

    One thread reads the next batch while the network works. Under conservation=smooth tiles are corrected once all
    tiles of their sample are predicted.
    """
    done = made.done()
    jobs = [(sample, tile) for sample in range(source.samples) for tile in layout.tiles]
    left = [job for job in jobs if _place(job) not in done]
    name, passes = predictor.spec.target, 2 if predictor.conservation == "smooth" else 1
    with tqdm(total=passes * len(jobs), initial=passes * (len(jobs) - len(left)), desc=f"map of {name}", unit="tile",
              disable=None if progress else True) as bar:  # fmt: skip
        if passes == 2:
            _map_smoothly(predictor, source, layout, made, left, batch_size, bar)
        else:
            for batch, found in _said(predictor, source, left, batch_size):
                for job, said in zip(batch, found, strict=True):
                    mapped = _empty(predictor, job[1]) if said is None else predictor.finish(said)
                    made.write(*job, mapped, name)
                _tell(bar, batch, source)
    by_sample = dict.fromkeys(range(source.samples), Residuals())
    for (sample, _, _), residuals in made.done().items():
        by_sample[sample] += residuals
    return by_sample


def _map_smoothly(
    predictor: TilePredictor, source: FieldSource, layout: Layout, made: Unfinished, left: list[Job], batch_size: int,
    bar: tqdm[Any],
) -> None:  # fmt: skip
    """Two passes over the tiles of each sample: the first keeps what the model says, the second corrects it."""
    kept = SaidTiles(made.path / "said", layout, predictor.spec.block_px)
    by_sample = {sample: [job[1] for job in jobs] for sample, jobs in groupby(left, key=lambda job: job[0])}
    unsaid = [job for job in left if not kept.has(*job)]
    bar.update(len(left) - len(unsaid))
    for sample in sorted(set(by_sample) - {sample for sample, _ in unsaid}):
        _correct(predictor, kept, made, sample, by_sample[sample], bar)
    said = _said(predictor, source, unsaid, batch_size)
    for sample, batches in groupby(said, key=lambda batch: batch[0][0][0]):
        for batch, found in batches:
            for job, one in zip(batch, found, strict=True):
                if one is not None:
                    kept.put(*job, one, predictor.blocks(one))
            _tell(bar, batch, source)
        _correct(predictor, kept, made, sample, by_sample[sample], bar)


def _correct(
    predictor: TilePredictor, kept: SaidTiles, made: Unfinished, sample: int, tiles: list[Tile], bar: tqdm[Any]
) -> None:
    kept.correct(sample)
    for tile in tiles:
        said = kept.said(sample, tile)
        if said is None:
            mapped = _empty(predictor, tile)
        else:
            mapped = predictor.finish(said, kept.correction(sample, tile))
        made.write(sample, tile, mapped, predictor.spec.target)
        bar.update()
    kept.drop(sample)


def _said(
    predictor: TilePredictor, source: FieldSource, jobs: list[Job], batch_size: int
) -> Iterator[tuple[list[Job], list[Said | None]]]:
    """What the model says of tiles whose windows have one shape; None where no SIF was observed to predict from."""
    for batch, read in _read_ahead(source, _batches(jobs, batch_size), predictor.fill_gaps):
        known = [fields for fields in read if fields is not None]
        raw = iter(predictor.raw(known).unbind(dim=1)) if known else iter(())
        pairs = zip(batch, read, strict=True)
        yield batch, [None if fields is None else predictor.say(next(raw), fields, job[1]) for job, fields in pairs]


def _empty(predictor: TilePredictor, tile: Tile) -> MappedTile:
    """A tile without any value."""
    shape = [along.stop - along.start for along in tile.core]
    values, flags = np.full(shape, np.nan, predictor.dtype), np.full(shape, FLAGS["no_observation"], np.uint8)
    bars = np.full((len(ERROR_BARS), *shape), np.nan, np.float32) if predictor.spec.uncertainty else None
    return MappedTile(values, flags, Residuals(), bars)


def _tell(bar: tqdm[Any], batch: list[Job], source: FieldSource) -> None:
    bar.set_postfix_str(f"sample {batch[0][0] + 1} of {source.samples}")
    bar.update(len(batch))


def _place(job: Job) -> tuple[int, int, int]:
    sample, tile = job
    return sample, tile.core[0].start, tile.core[1].start


def _batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Neighbours of one sample whose windows have one shape."""
    batch: list[Job] = []
    for job in jobs:
        if batch and (len(batch) == size or (job[0], job[1].shape) != (batch[0][0], batch[0][1].shape)):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _read_ahead(
    source: FieldSource, batches: Iterable[list[Job]], everywhere: bool
) -> Iterator[tuple[list[Job], list[TileFields | None]]]:
    def read(batch: list[Job]) -> list[TileFields | None]:
        return [_read(source, sample, tile, everywhere) for sample, tile in batch]

    with ThreadPoolExecutor(1) as reader:
        waiting: tuple[list[Job], Future[list[TileFields | None]]] | None = None
        for batch in batches:
            ahead = reader.submit(read, batch)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = batch, ahead
        if waiting:
            yield waiting[0], waiting[1].result()


def _read(source: FieldSource, sample: int, tile: Tile, everywhere: bool) -> TileFields | None:
    if not source.has_sif(sample) or not (everywhere or source.observed(sample, tile.core).any()):
        return None
    return source.read(sample, tile.window)
