"""A read that fails on one of several ranks: all stop after the same step, and the run goes on later."""

import numpy as np
import pytest
import torch
from jobs import consumed, finish, start, state, succeed
from messages import lines_with
from servers import FaultyServer
from small import small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.shuffle import BlockShuffle

pytestmark = pytest.mark.slow


def test_a_read_that_fails_for_good_stops_all_ranks_after_the_same_step_and_the_run_goes_on_later(tmp_path):
    shards = small_shards(tmp_path)
    stream = {"run_samples": 1, "window_samples": 8, "lead_samples": 4, "num_lanes": 2, "prefetch_batches": 1,
              "access": {"give_up_seconds": 1, "timeout_seconds": 5}}
    common = {"total_samples": 144, "log_every_samples": 72, "validate_every_samples": 144, "stream": stream}
    reader = ShardDataset(shards / "train")
    sample = int(BlockShuffle(0, 75, 1, 2, 8).samples_at(np.array([65]))[0])
    missing = int(reader.entry(sample)["start"]), f"train/00000{sample // 30}.tar"
    run = tmp_path / "run"
    with FaultyServer(shards) as server:
        server.fault = lambda path, start, stop, number: "404" if (start, path) == missing and stop else None
        status, output = finish(start(2, tmp_path, shards=server.url, run=str(run), **common))
        assert status != 0
        assert lines_with(output, missing[1], missing[0]), output
        assert consumed(run) == 60, "position 65 lies in the sixth batch of 12"
        server.clear()
        succeed(start(2, tmp_path, shards=server.url, run=str(run), **common))
        succeed(start(1, tmp_path, shards=server.url, run=str(tmp_path / "whole"), **common))
    assert consumed(run) == 144
    for name, tensor in state(tmp_path / "whole")["network"].items():
        torch.testing.assert_close(state(run)["network"][name], tensor, rtol=0, atol=1e-5)
