"""What a checkpoint of a stranger may hold: looked at before anything is taken from it."""

import math
import shutil

import pytest
import torch
from messages import facts
from small import small_config, small_shards

from srcnn.runtime.distributed import DistributedError
from srcnn.runtime.files import sha256_of, write_json
from srcnn.runtime.untrusted import read_json
from srcnn.training import checkpoint
from srcnn.training.resume import is_restart
from srcnn.training.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Shards, and the state of a run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    shards = small_shards(folder)
    train(small_config(folder / "run", shards, total_samples=16))
    latest = checkpoint.latest(folder / "run")
    return shards, latest / checkpoint.MODEL, checkpoint.load_training(latest)


def put(run, model, state):
    """A checkpoint folder whose hashes are right, with this state."""
    folder = checkpoint.step_folder(run, 2)
    folder.mkdir(parents=True)
    shutil.copy(model, folder / checkpoint.MODEL)
    torch.save(state, folder / checkpoint.TRAINING)
    names = (checkpoint.MODEL, checkpoint.TRAINING)
    entries = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    write_json(folder / checkpoint.FILES, entries)
    assert read_json(folder / checkpoint.FILES) == entries and checkpoint.latest(run) == folder


def changed(state, path, value):
    key, *rest = path
    return state | {key: changed(state[key], rest, value) if rest else value}


FOLDER = "step-00000002"
FIRST_WEIGHT = ("network", "conv1.weight")


@pytest.mark.parametrize("path,value,told", [
    (("format",), 1, ["format", 1, 2, "--fresh"]),
    (("step",), -1, ["step", -1]),
    (("samples",), 1.5, ["samples", 1.5]),
    (("skipped_steps",), True, ["skipped_steps", True]),
    (("network",), {}, ["conv1.weight"]),
    (FIRST_WEIGHT, torch.zeros(8, 1, 9, 8), ["conv1.weight", (8, 1, 9, 8), (8, 1, 9, 9)]),
    (FIRST_WEIGHT, torch.zeros(8, 1, 9, 9, dtype=torch.int64), ["conv1.weight", torch.int64]),
    (FIRST_WEIGHT, torch.full((8, 1, 9, 9), math.nan), ["conv1.weight", "finite"]),
    (FIRST_WEIGHT, "text", [FOLDER]),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(3), ["optimizer.0.exp_avg", (3,)]),
    (("optimizer", "state", 0, "exp_avg_sq"), torch.full((8, 1, 9, 9), math.inf), ["optimizer.0.exp_avg_sq", "finite"]),
    (("optimizer", "state"), {77: {}}, [FOLDER, 77]),
    (("optimizer",), [], [FOLDER]),
    (("meter",), [{"sums": [1.0], "gradient_norm": 0.0, "learning_rate": 0.0}], [1, 4]),
    (("meter",), [], [0, 4]),
    (("tracker_id",), "../../elsewhere", ["../../elsewhere"]),
    (("config",), 3, [FOLDER]),
    (("stream", "manifest_hash"), "0" * 64, ["data.manifest_hash", "0" * 64, "--fresh"]),
])
def test_a_state_that_no_training_has_is_named(tmp_path, trained, path, value, told):
    shards, model, state = trained
    put(tmp_path / "run", model, changed(state, path, value))
    with pytest.raises(DistributedError, match=facts(*told)):
        train(small_config(tmp_path / "run", shards, total_samples=16))


def test_the_state_itself_is_taken(tmp_path, trained):
    shards, model, state = trained
    put(tmp_path / "run", model, state)
    (checkpoint.step_folder(tmp_path / "run", 2) / "extra").write_text("harmless")
    assert train(small_config(tmp_path / "run", shards, total_samples=16)) == state["values"]


def test_a_pickle_that_would_run_something_does_not(tmp_path, trained):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    shards, model, state = trained
    put(tmp_path / "run", model, state | {"values": Payload()})
    with pytest.raises(DistributedError, match=facts(FOLDER, checkpoint.TRAINING)):
        train(small_config(tmp_path / "run", shards, total_samples=16))
    assert not (tmp_path / "ran").exists()


def test_a_job_knows_its_own_run_folder_again(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "KUBERNETES_JOB_UID"):
        monkeypatch.delenv(name, raising=False)
    shards = small_shards(tmp_path)
    train(small_config(tmp_path / "run", shards, total_samples=16))
    assert not is_restart(tmp_path / "run"), "two commands of a person"
    monkeypatch.setenv("KUBERNETES_JOB_UID", "1234")
    fresh = small_config(tmp_path / "run", shards, total_samples=16, fresh=True)
    train(fresh)
    kept = tmp_path / "run.before-1"
    assert kept.is_dir() and is_restart(tmp_path / "run") and not is_restart(kept)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # a launcher's rank of the same job
    train(fresh)
    assert is_restart(tmp_path / "run") and not (tmp_path / "run.before-2").exists()
    monkeypatch.delenv("KUBERNETES_JOB_UID")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    train(small_config(tmp_path / "run", shards, total_samples=16))
    assert not is_restart(tmp_path / "run"), "two commands in one allocation"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_restart(tmp_path / "run"), "requeued"
    monkeypatch.setenv("KUBERNETES_JOB_UID", "5678")
    assert not is_restart(tmp_path / "run")


def test_fresh_means_it_also_twice_with_one_rendezvous(tmp_path, monkeypatch):
    """`torchrun --rdzv-id=$SLURM_JOB_ID` by hand, twice; but not where a node joins and a launcher is left."""
    for name in ("SLURM_JOB_ID", "KUBERNETES_JOB_UID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "my job")
    fresh = small_config(tmp_path / "run", small_shards(tmp_path), total_samples=16, fresh=True)
    for launcher, num_kept in (("node1:7:100", 0), ("node1:8:200", 1), ("node1:8:200", 1)):
        monkeypatch.setattr("srcnn.runtime.signals.launcher_id", lambda launcher=launcher: launcher)
        train(fresh)
        assert len(list(tmp_path.glob("run.before-*"))) == num_kept, launcher
    assert is_restart(tmp_path / "run", ["node2:5:300", "node1:8:200"])
    assert not is_restart(tmp_path / "run", ["node2:5:300"])


@pytest.mark.parametrize("text", ["", "4711 0", "[1]", "{", "[" * 100_000, "\xff"])
def test_whatever_is_in_the_file_of_the_job_fresh_starts_over(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    (tmp_path / ".job").write_bytes(text.encode("latin-1"))
    assert not is_restart(tmp_path)
