"""The training's stream for any loop: a PyTorch `IterableDataset` with a state, over the trainer's own loader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import Batch, LoaderConfig, LoaderState, train_batches
from srcnn.data.shuffle import BatchPlan
from srcnn.data.training_pairs import DegradationConfig, PairMaker
from srcnn.runtime.errors import UserError

_EPOCH, _POSITION, _FINISHED, _IN_WORKERS = range(4)  # what the workers of a DataLoader share with its process


class StreamBatch(NamedTuple):
    """This rank's part of a global batch: the tensors of `loader.Batch`, and a position.

    Attributes:
        clean, degraded: uint8 (N, H, W) or (N, H, W, 3); `srcnn.to_float_batch` makes floats (N, C, H, W) of them.
        samples, symmetries, conditions: see `loader.Batch`.
        position: samples of the stream up to the end of the global batch. As it is no tensor, Accelerate refuses to
            split the batch once more.
    """

    clean: torch.Tensor
    degraded: torch.Tensor
    samples: torch.Tensor
    symmetries: torch.Tensor
    conditions: torch.Tensor | None
    position: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StreamBatch:
        """The batch with its tensors on a device."""
        moved = Batch(*self[:5]).map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return StreamBatch(*moved, self.position)


class PairStream(IterableDataset[StreamBatch]):
    """Batches of shuffled pairs, the same global batches on any number of ranks; each iteration is an epoch.

    For a `DataLoader(stream, batch_size=None)` with any number of workers, which read every n-th batch each, or to be
    iterated itself. The last batch of an epoch is filled with the first pairs of the next epoch, which do not come
    again: all batches have `batch_size` pairs over all ranks, and in a run every pair comes once in each epoch.

    Args:
        shards: folder or URL of a split, such as data/shards/train.
        batch_size: pairs in a batch, over all ranks.
        rank: of this process. Default: that of torch.distributed or, before its start, of the launcher's environment.
        world_size: number of ranks; the default is found in the same way.
        config: the order of the samples, and how they are read.
        degradation: makes pairs of shards of clean tiles, augmented; `to_float_batch` augments other pairs.

    Raises:
        UserError: arguments that do not fit each other or the shards. Others: see `ShardDataset`.
    """

    def __init__(
        self, shards: str | Path, batch_size: int, seed: int = 0, rank: int | None = None,
        world_size: int | None = None, config: LoaderConfig | None = None, degradation: DegradationConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config or LoaderConfig()
        if self.config.resident != "no":
            raise UserError(f"PairStream: resident {self.config.resident}: only the trainer can; expected no")
        self.rank, self.world_size = _rank_here() if rank is None or world_size is None else (rank, world_size)
        if (rank, world_size) not in [(None, None), (self.rank, self.world_size)]:
            raise UserError(f"PairStream: rank {rank}, world_size {world_size}: give both or neither")
        if not 0 <= self.rank < self.world_size <= batch_size:
            raise UserError(f"PairStream: rank {self.rank}, world_size {self.world_size}, batch_size {batch_size}: "
                            "expected 0 <= rank < world_size <= batch_size (over all ranks)")
        self.dataset = ShardDataset(shards, access=self.config.access)
        self.batch_size, self.seed = batch_size, seed
        self.maker = None
        if (degradation is not None) != self.dataset.manifest.is_clean_only:
            hint = "leave degradation out" if degradation else "give degradation (docs/degradations.md)"
            raise UserError(f"{self.dataset.location}: holds {'pairs' if degradation else 'clean tiles alone'}: {hint}")
        if degradation:
            degradation.check(self.dataset.tile_shape)
            self.maker = PairMaker(degradation, seed, augment=True, tile_shape=self.dataset.tile_shape)
        order = str(self.config.make_shuffle(seed, self.dataset))
        state = asdict(LoaderState(seed, 0, 0, self.dataset.manifest.hash(), order))
        self._identity = state | {"batch_size": batch_size}
        self._shared = torch.zeros(4, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._reading = self._first = self._position = 0  # the iteration's epoch and first batch, where it has come to
        self._is_restored = False  # whether these are of a state that was loaded in a worker
        self._used: int | None = None  # the position that the last call of `used` has told

    @property
    def epoch(self) -> int:
        """The epoch that is read, or read next; from 0. The workers of a DataLoader do not change it."""
        return int(self._shared[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; within this epoch a state that was loaded is kept.

        To be called before each epoch where a DataLoader has workers, which cannot tell its process that one is over.
        """
        if epoch < 0:
            raise UserError(f"PairStream: epoch {epoch}: expected at least 0")
        if epoch != self.epoch:
            position = int(self._shared[_POSITION])
            self._go_to(epoch, self._batch_start(position, epoch * self.dataset.num_samples))
            self._used = None

    def used(self, batch: StreamBatch) -> None:
        """Says that this batch and all before it were used; to be called in each step, before the state is saved."""
        self._used = batch.position

    def state_dict(self) -> dict[str, Any]:
        """The state after the batch of the last call of `used`, or, without one, after the last batch yielded here.

        It is the same on every rank, and for any number of ranks and workers. `torchdata.StatefulDataLoader` asks for
        it by itself, in the workers.

        Raises:
            UserError: workers of a DataLoader read this stream, and `used` was not called.
        """
        epoch, position, first = self._reading, self._position, self._first
        if get_worker_info() is None:
            if self._used is None and self._shared[_IN_WORKERS]:
                raise UserError("PairStream: a DataLoader's workers read this stream: call stream.used(batch) in each "
                                "step, or use torchdata's StatefulDataLoader")
            epoch = self.epoch
            first = position = position if self._used is None else self._used
        return self._identity | {"epoch": epoch, "consumed_samples": position, "first": first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration continue after a state.

        Raises:
            UserError: it is of another seed, order or other shards, or, in a worker, of another batch size.
        """
        in_worker = get_worker_info() is not None
        for key in ("seed", "manifest_hash", "order", "order_version", *(["batch_size"] if in_worker else [])):
            if state.get(key) != (own := self._identity[key]):
                raise UserError(f"PairStream: the state is of {key} {state.get(key)}, the stream has {own}")
        epoch, position, first = (int(state[key]) for key in ("epoch", "consumed_samples", "first"))
        if in_worker:
            self._reading, self._position, self._first, self._is_restored = epoch, position, first, True
        else:
            self._go_to(epoch, position)
            self._used = None

    def _go_to(self, epoch: int, position: int) -> None:
        self._shared.copy_(torch.tensor([epoch, position, 0, 0]))
        self._reading, self._first, self._position = epoch, position, position

    def _batch_start(self, position: int, target: int) -> int:
        """The first position at or after `target` at which a batch starts, if one starts at `position`."""
        return position - (position - target) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[StreamBatch]:
        worker = get_worker_info()
        if not self._is_restored:
            self._reading, self._first = self._shared[[_EPOCH, _POSITION]].tolist()
            self._position = self._first
        self._shared[_IN_WORKERS] = int(worker is not None)
        batches = self._batches(*((worker.id, worker.num_workers) if worker else (0, 1)), self._is_restored)
        self._is_restored = False
        return batches

    def _batches(self, number: int, num_workers: int, is_restored: bool) -> Iterator[StreamBatch]:
        """Yields every n-th batch, as a DataLoader takes them from its workers in turn."""
        stop = (self._reading + 1) * self.dataset.num_samples
        end = max(self._first, self._batch_start(self._first, stop))
        if number == 0 and not is_restored and self._shared[_FINISHED] >= max(1, end):
            raise UserError(f"PairStream: epoch {self._reading} was read to its end: before each epoch call "
                            "stream.set_epoch(epoch), as the DataLoader has workers")
        start, stride = self._first + number * self.batch_size, num_workers * self.batch_size
        start += max(0, -((start - self._position) // stride)) * stride
        plan = BatchPlan(self.seed, start, stop, self.batch_size, self.rank, self.world_size, num_workers)
        for start, batch in zip(plan.batch_starts, train_batches(self.dataset, self.config, plan, maker=self.maker)):
            self._position = start + self.batch_size
            copies = batch.map(lambda array: torch.from_numpy(array.copy()))  # as the loader reuses its arrays
            yield StreamBatch(*copies, self._position)
        self._position = end
        if get_worker_info() is None:
            self._go_to(self._reading + 1, end)
        elif number == 0:
            self._shared[_FINISHED] = end


def _rank_here() -> tuple[int, int]:
    """(rank, world size) of this process. Raises UserError if the launcher tells only one of them."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if (rank is None) != (world_size is None):
        raise UserError(f"PairStream: RANK is {rank}, WORLD_SIZE {world_size} in the environment: give rank and "
                        "world_size, or make the stream when torch.distributed has started")
    return int(rank or 0), int(world_size or 1)
