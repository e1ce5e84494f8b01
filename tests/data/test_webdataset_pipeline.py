"""The same pairs through webdataset's own reader as through the indexed dataset."""

import numpy as np
import pytest
from small import small_shards

import srcnn
from srcnn.data.dataset import ShardDataset


@pytest.mark.parametrize("encoding", ["npy", "png"])
@pytest.mark.parametrize("color", ["luma", "rgb"])
def test_webdataset_gives_the_pairs_of_the_indexed_dataset(tmp_path, encoding, color):
    folder = small_shards(tmp_path, encoding=encoding, color=color) / "train"
    dataset = ShardDataset(folder)
    clean, degraded = dataset.read(np.arange(dataset.num_samples))
    urls = [str(folder / shard.name) for shard in dataset.manifest.shards]
    channels = 3 if color == "rgb" else 1
    pairs = list(srcnn.webdataset_pipeline(urls, dataset.manifest.members, channels))
    assert len(pairs) == dataset.num_samples == 75
    for number, pair in enumerate(pairs):
        assert np.array_equal(pair[0], clean[number]) and np.array_equal(pair[1], degraded[number])
    shuffled = srcnn.webdataset_pipeline(urls, dataset.manifest.members, channels, shardshuffle=10).shuffle(20)
    assert sorted(a.tobytes() + b.tobytes() for a, b in shuffled) == sorted(a.tobytes() + b.tobytes() for a, b in pairs)


def test_clean_tiles_alone_are_read_too(tmp_path):
    folder = small_shards(tmp_path, contents="clean") / "train"
    dataset = ShardDataset(folder)
    clean, _ = dataset.read(np.arange(dataset.num_samples))
    urls = [str(folder / shard.name) for shard in dataset.manifest.shards]
    tiles = [tile for (tile,) in srcnn.webdataset_pipeline(urls, dataset.manifest.members)]
    assert np.array_equal(np.stack(tiles), clean)
