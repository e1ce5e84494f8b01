"""The loops of docs/stream.md, run as they stand there, interrupted and run again: the batches of a training."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quiet_env
from jobs import free_port
from small import small_shards
from torch.utils.data import DataLoader

from srcnn import PairStream, ShardDataset
from srcnn.data import transforms
from srcnn.data.loader import LoaderConfig, train_batches
from srcnn.data.shuffle import BatchPlan
from srcnn.data.transforms import to_float_batch

SECTIONS = re.split("^## ", (Path(__file__).parents[2] / "docs/stream.md").read_text(), flags=re.M)[1:]
CODE = {section.split()[0]: "".join(re.findall("```python\n(.*?)```", section, re.S)) for section in SECTIONS}
LOOPS = {"Plain": "", "torchdata's": "torchdata", "Lightning": "lightning", "Accelerate": ""}  # what they need
BATCH, STEPS, SAVED = 16, 15, 4  # three epochs of 75 pairs; a checkpoint every four steps
pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about settings and the machine
ON_RANKS = """
import os, sys
from srcnn.data import transforms
from test_stream_docs import Interrupted, note
used = []
transforms.to_float_batch = note(used, int(sys.argv[1]))
try:
    exec(compile(open("loop.py").read(), "loop.py", "exec"))
except Interrupted:
    pass
print(*used, sep="\\n", file=open(f"used-{os.environ['RANK']}", "a"))
os._exit(0)
"""


class Interrupted(Exception):
    """Takes a loop away in the midst of a step."""


def note(used, num_steps):
    """`to_float_batch` that adds the samples to `used`, and interrupts the step after `num_steps`."""
    start = len(used)

    def noting(batch, augment):
        if len(used) - start == num_steps:
            raise Interrupted
        used.append(batch.samples.tolist())
        return to_float_batch(batch, augment)

    return noting


@pytest.fixture
def folder(tmp_path, monkeypatch):
    small_shards(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_training(folder, rank=0, num_ranks=1):
    plan = BatchPlan(0, 0, STEPS * BATCH, BATCH, rank, num_ranks)
    dataset = ShardDataset(folder / "data/shards/train")
    return [batch.samples.tolist() for batch in train_batches(dataset, LoaderConfig(), plan)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("num_steps", [6, 13])
def test_an_interrupted_loop_goes_on_with_the_batches_of_a_training(folder, monkeypatch, loop, num_steps):
    if LOOPS[loop]:
        pytest.importorskip(LOOPS[loop])
    used = []
    for limit in (num_steps, STEPS):
        monkeypatch.setattr(transforms, "to_float_batch", note(used, limit))
        try:
            exec(compile(CODE[loop], loop, "exec"), {"__name__": "loop"})
        except Interrupted:
            assert len(used) == num_steps
    expected = of_training(folder)
    saved = num_steps // SAVED * SAVED
    assert used == expected[:num_steps] + expected[saved:]


@pytest.mark.slow
def test_accelerate_goes_on_with_other_ranks(folder):
    (folder / "loop.py").write_text(CODE["Accelerate"])
    (folder / "on_ranks.py").write_text(ON_RANKS)
    counts = np.zeros(75, int)
    for num_ranks, limit in ((2, 8), (3, STEPS)):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
        command += ["--master-port", str(free_port()), "on_ranks.py", str(limit)]
        environment = quiet_env()
        environment["PYTHONPATH"] += ":" + ":".join(sys.path)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        for rank in range(num_ranks):
            lines = Path(f"used-{rank}").read_text().splitlines()
            Path(f"used-{rank}").unlink()
            np.add.at(counts, sum(map(ast.literal_eval, lines), []), 1)
    counts[sum(of_training(folder), [])[225:]] -= 1  # the last batch is filled from the fourth epoch
    assert (counts == 3).all()


def _prepare(rank, port, shards, queue):
    """Lets Accelerate split a rank's stream again."""
    import os

    from accelerate import Accelerator
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(PairStream(shards, BATCH), batch_size=None))
    try:
        next(iter(loader))
    except TypeError:
        queue.put(rank)
    os._exit(0)


@pytest.mark.slow
def test_accelerate_does_not_split_the_batches_twice(folder):
    context = torch.multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    shards = folder / "data/shards/train"
    ranks = [context.Process(target=_prepare, args=(rank, port, shards, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    assert queue.get(timeout=120) == 0
    for process in ranks:
        process.kill()
        process.join()


def test_a_map_style_dataset_and_webdataset(folder):
    names = {}
    exec(compile(CODE["A"], "map-style", "exec"), names)
    assert names["error"].ndim == 0 and names["clean"].shape == (32, 32)
    assert next(iter(names["pairs"]))[0].shape == (16, 32, 32)
