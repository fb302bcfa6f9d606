"""In which order crops come: decided by (seed, epoch) alone, shared fairly by the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from sifscale.chunk_pool import ChunkPool


class BatchOrder(Sampler[list[int]]):
    """Lists of crop numbers; shuffled by (seed, epoch) alone, so that a resumed run has the same batches.

    With several processes each takes its share; shuffled, all take equally many, so that none waits for another (up
    to world - 1 crops are left out, others each epoch). Lightning calls ``set_epoch``. seed None: in order, each crop
    once. pool: crops are mixed from as many windows as it has slots, instead of from all.
    """

    def __init__(
        self,
        crops: int,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        world: int = 1,
        pool: ChunkPool | None = None,
    ) -> None:
        self.crops, self.batch_size, self.seed, self.rank, self.world = crops, batch_size, seed, rank, world
        self.pool = pool
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        mine = len(range(self.rank, self.crops, self.world)) if self.seed is None else self.crops // self.world
        return -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        mine = self._mine()
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size].tolist()

    def _mine(self) -> NDArray[np.intp]:
        if self.seed is None:
            return np.arange(self.rank, self.crops, self.world)
        random = np.random.default_rng((self.seed, self.epoch))
        if self.pool is not None:
            return mixed_order(self.pool.home, self.pool.slots, random, self.rank, self.world)
        order = random.permutation(self.crops)
        return order[self.rank :: self.world][: self.crops // self.world]


def mixed_order(
    home: NDArray[np.intp], slots: int, random: np.random.Generator, rank: int = 0, world: int = 1
) -> NDArray[np.intp]:
    """Crop numbers of one process, such that at no time more than ``slots`` windows are in use.

    home (crop,): number of each crop's window. Windows take turns at random. Those of a process are in use by slots
    at a time, and each step the one that is longest in use is replaced by the next: in steps, window i is used from
    i - slots + 1 to i + 1, cut to the epoch, and its crops fall anywhere in that time. All windows at hand thus go
    into each batch, as many crops of each as it has. Processes take stretches of one common order, so that they read
    hardly a window twice.
    """
    turn = random.permutation(home.max() + 1)[home]
    whole, chance = np.lexsort((random.random(len(home)), turn)), random.random(len(home))
    share = len(home) // world
    mine = whole[rank * share : (rank + 1) * share]
    place = np.unique(turn[mine], return_inverse=True)[1]
    steps = max(place[-1] + 1 - slots, 0) + 1
    start, end = np.clip(place - slots + 1, 0, None), np.clip(place + 1, None, steps)
    return mine[np.argsort(start + chance[mine] * (end - start), kind="stable")]
