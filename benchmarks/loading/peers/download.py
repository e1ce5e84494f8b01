"""A plain download of the shards' bytes from an address by as many connections and in the same ranges as ours, into
nothing: what there is to reach."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
from obstore.store import from_url
from timing import Batches, main

from srcnn.data.loader import LoaderConfig
from srcnn.runtime.object_store import AccessConfig


def stream(location: str, num_workers: int, batch_size: int) -> Batches:
    """Batches of no pixels: one zero stands for them all."""
    store = from_url(location, client_options={"allow_http": True})
    manifest = json.loads(bytes(obstore.get(store, "manifest.json").bytes()))
    stride = manifest["stride"]
    shards = [(shard["name"], shard["num_samples"]) for shard in manifest["shards"]]
    run_pairs = LoaderConfig().run_samples
    rng = np.random.default_rng(0)

    def runs() -> Iterator[tuple[str, int, int]]:
        """(shard, first pair, number of pairs), shuffled, for ever."""
        starts = [(name, first, end) for name, end in shards for first in range(0, end, run_pairs)]
        every = [(name, first, min(run_pairs, end - first)) for name, first, end in starts]
        while True:
            for index in rng.permutation(len(every)):
                yield every[index]

    def fetch(run: tuple[str, int, int]) -> int:
        name, first, num_pairs = run
        obstore.get_range(store, name, start=first * stride, length=num_pairs * stride)
        return num_pairs

    num_connections, coming = AccessConfig().num_connections, runs()
    with ThreadPoolExecutor(num_connections) as pool:
        waiting = deque(pool.submit(fetch, next(coming)) for _ in range(2 * num_connections))
        while True:
            num_pairs = 0
            while num_pairs < batch_size:
                num_pairs += waiting.popleft().result()
                waiting.append(pool.submit(fetch, next(coming)))
            nothing = np.broadcast_to(np.uint8(0), (num_pairs, 128, 128))
            yield nothing, nothing


if __name__ == "__main__":
    main(stream)
