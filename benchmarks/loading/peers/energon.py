"""megatron-energon over our own npy shards: crude samples, cooked into tensors, shuffled and batched in the workers."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.flavors import BaseWebdatasetFactory
from timing import Batches, main, shards_of

warnings.filterwarnings("ignore", message="The given buffer is not writable")

NPY_HEADER_BYTES, TILE_SHAPE = 128, (128, 128)
DATASET = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"


@edataclass
class Pair(Sample):
    clean: torch.Tensor
    degraded: torch.Tensor


def tile(content: bytes) -> torch.Tensor:
    return torch.frombuffer(content, dtype=torch.uint8, offset=NPY_HEADER_BYTES).view(TILE_SHAPE)


@stateless
def cook(sample: dict[str, bytes]) -> Pair:
    return Pair(**basic_sample_keys(sample), clean=tile(sample["clean.npy"]), degraded=tile(sample["degraded.npy"]))


class Pairs(DefaultTaskEncoder):
    """Raw members in, tensors out: energon's own decoder would look at each member for pictures and films."""

    decoder = None
    cookers = [Cooker(cook)]

    @stateless
    def batch(self, samples: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([pair.clean for pair in samples]), torch.stack([pair.degraded for pair in samples])


def prepare(source: Path, out: Path) -> None:
    out.mkdir(parents=True)
    for shard in shards_of(source):
        os.link(shard, out / shard.name)
    names = [shard.name for shard in shards_of(out)]
    BaseWebdatasetFactory.prepare_dataset(out, names, split_parts_ratio=[("train", 1.0)], workers=1)
    (out / ".nv-meta" / "dataset.yaml").write_text(DATASET)


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    dataset = get_train_dataset(
        location,
        batch_size=batch_size,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=num_workers),
        task_encoder=Pairs(),
    )
    yield from get_loader(dataset)


if __name__ == "__main__":
    main(stream, prepare)
