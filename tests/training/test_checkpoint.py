"""Checkpoints: whole or not there, verified, rotated, the best kept."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from messages import facts

from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import load_model
from srcnn.runtime.files import FolderLock
from srcnn.training import checkpoint


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SRCNN(ModelConfig(filters=(2, 2)))


def save(run, step, model, is_best=False, keep=2):
    snapshot = checkpoint.Snapshot(step, model, {"step": step}, {"samples": str(step)}, is_best)
    return checkpoint.save(run, snapshot, keep)


def test_the_latest_few_and_the_best_are_kept(tmp_path, model):
    for step in range(1, 6):
        save(tmp_path, step, model, is_best=step == 2)
    assert [folder.name for folder in checkpoint.step_folders(tmp_path)] == [
        "step-00000002", "step-00000004", "step-00000005",
    ]
    assert (tmp_path / "best").resolve().name == "step-00000002"
    assert checkpoint.latest(tmp_path).name == "step-00000005"
    assert checkpoint.load_training(checkpoint.latest(tmp_path)) == {"step": 5}
    assert not list(tmp_path.rglob(".writing-*"))


def test_the_best_can_be_loaded_from_the_run_folder_and_from_checkpoint_pth(tmp_path, model):
    save(tmp_path, 1, model, is_best=True)
    for source in (tmp_path, tmp_path / "checkpoint.pth", tmp_path / "best"):
        assert torch.equal(load_model(source).conv1.weight, model.conv1.weight)


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.TRAINING, checkpoint.FILES])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(tmp_path, model, name, caplog):
    save(tmp_path, 1, model)
    damaged = save(tmp_path, 2, model) / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x55
    damaged.write_bytes(content)
    assert checkpoint.latest(tmp_path).name == "step-00000001"
    assert "step-00000002" in caplog.text
    damaged.unlink()
    assert checkpoint.latest(tmp_path).name == "step-00000001"


def test_no_whole_checkpoint_of_many_is_no_reason_to_begin_anew(tmp_path, model):
    for step in (0, 1):
        (save(tmp_path, step, model) / checkpoint.MODEL).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=facts(tmp_path, 2, "--fresh")):
        checkpoint.latest(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000001")
    assert checkpoint.latest(tmp_path) is None, "nothing was trained yet"


def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(tmp_path, model):
    folder = save(tmp_path, 1, model)
    replaced = folder.with_name(f"{checkpoint.REPLACED_PREFIX}{folder.name}")
    folder.rename(replaced)
    checkpoint.clear_leftovers(tmp_path)
    assert checkpoint.latest(tmp_path) == folder and not replaced.exists()
    shutil.copytree(folder, replaced)
    checkpoint.clear_leftovers(tmp_path)
    assert checkpoint.latest(tmp_path) == folder and not replaced.exists()


def test_a_best_checkpoint_that_could_not_be_written_comes_with_the_next(tmp_path, model):
    writer = checkpoint.AsyncCheckpointWriter(tmp_path, 1, FolderLock(tmp_path, 0))
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the folder should be")
    writer.submit(checkpoint.Snapshot(1, model, {"step": 1}, {}, is_best=True))
    problems = writer.wait()
    assert len(problems) == 1 and "checkpoints" in str(problems[0])
    blocked.unlink()
    writer.submit(checkpoint.Snapshot(2, model, {"step": 2}, {}, is_best=False))
    assert writer.wait() == []
    assert (tmp_path / "best").resolve().name == "step-00000001"
    assert checkpoint.latest(tmp_path).name == "step-00000002"
    writer.close()


def test_steps_sort_as_numbers(tmp_path, model):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step, model, keep=1)
    assert checkpoint.latest(tmp_path).name == "step-100000000"
    assert len(checkpoint.step_folders(tmp_path)) == 1


def test_damaged_checkpoints_that_were_passed_over_do_not_push_out_new_ones(tmp_path, model):
    save(tmp_path, 1, model, is_best=True)
    (save(tmp_path, 9, model) / checkpoint.MODEL).write_bytes(b"damaged")
    for step in (2, 3):  # the run went on from step 1
        save(tmp_path, step, model, keep=1)
        assert checkpoint.latest(tmp_path).name == f"step-{step:08d}"
    assert [folder.name for folder in checkpoint.step_folders(tmp_path)] == ["step-00000001", "step-00000003"]


def test_a_half_written_checkpoint_is_never_taken_and_cleared_away(tmp_path, model):
    half = tmp_path / "checkpoints" / ".writing-step-00000003"
    half.mkdir(parents=True)
    (half / checkpoint.MODEL).write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.clear_leftovers(tmp_path)
    assert not half.exists()


def test_a_failed_save_leaves_what_was_there(tmp_path, model, monkeypatch):
    save(tmp_path, 1, model, is_best=True)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError):
        save(tmp_path, 2, model, is_best=True)
    assert checkpoint.latest(tmp_path).name == (tmp_path / "best").resolve().name == "step-00000001"


def test_a_best_checkpoint_comes_again_where_the_run_folder_was_lost(tmp_path, model):
    run = tmp_path / "run"
    run.mkdir()
    writer = checkpoint.AsyncCheckpointWriter(run, 1, FolderLock(run, 0))
    writer.submit(checkpoint.Snapshot(1, model, {"step": 1}, {}, is_best=True))
    assert writer.wait() == []
    shutil.rmtree(run)
    writer.submit(checkpoint.Snapshot(2, model, {"step": 2}, {}, is_best=False))
    assert writer.wait() == []
    assert (run / "best").resolve().name == "step-00000001" and checkpoint.latest(run).name == "step-00000002"


def test_what_is_no_checkpoint_of_ours_is_left_alone(tmp_path, model):
    folder = save(tmp_path, 1, model)
    shutil.copytree(folder, folder.with_name("step-00000001-for-the-paper"))
    (tmp_path / "checkpoints" / "step-00000009.tar").write_text("packed")
    for step in (2, 3):
        save(tmp_path, step, model, keep=1)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step-00000003", "step-00000001-for-the-paper", "step-00000009.tar"}


def test_a_folder_where_the_link_to_the_best_belongs_is_named(tmp_path, model):
    (tmp_path / "best").mkdir()
    with pytest.raises(FileExistsError, match=facts(tmp_path / "best")):
        save(tmp_path, 1, model, is_best=True)


def test_a_lock_is_on_the_folder_that_has_the_name(tmp_path):
    """Two wait for a folder that its holder puts aside: only one of them has the new one."""
    run = tmp_path / "run"
    run.mkdir()
    held = FolderLock(run, 0)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(FolderLock, run, 3) for _ in range(2)]
        run.rename(tmp_path / "aside")
        run.mkdir()
        del held
        outcomes = [future.exception() for future in waiting]
        assert sorted(type(outcome) for outcome in outcomes if outcome) == [BlockingIOError]
        assert [future.result().is_held() for future in waiting if not future.exception()] == [True]


@pytest.mark.parametrize("error", [OSError(28, "full"), MemoryError(), RuntimeError("not of the disk")], ids=repr)
def test_errors_of_the_thread_of_any_type_are_kept_for_all_ranks(tmp_path, model, monkeypatch, error):
    """Raised by `submit` they would hit one rank alone, between two steps."""
    def fail(*_):
        raise error

    writer = checkpoint.AsyncCheckpointWriter(tmp_path, 1, FolderLock(tmp_path, 0))
    monkeypatch.setattr(checkpoint, "save", fail)
    for step in (1, 2):
        writer.submit(checkpoint.Snapshot(step, model, {}, {}, is_best=False))
    assert writer.wait() == [error, error] and writer.written_step == -1
    writer.close()


def test_nothing_is_written_any_more_where_another_has_the_folder_too(tmp_path, model, monkeypatch):
    monkeypatch.setattr("srcnn.runtime.files.lock_file", lambda fd: True)
    writer = checkpoint.AsyncCheckpointWriter(tmp_path, 1, FolderLock(tmp_path, 0))
    checkpoint.AsyncCheckpointWriter(tmp_path, 1, FolderLock(tmp_path, 0)).close()
    writer.submit(checkpoint.Snapshot(1, model, {}, {}, is_best=False))
    assert [type(error) for error in writer.wait()] == [BlockingIOError]
    assert checkpoint.step_folders(tmp_path) == []
    writer.close()


def test_links_among_the_checkpoints_do_no_harm(tmp_path, model):
    """To nowhere, in a circle, to a checkpoint, and out of the run folder, where nothing is removed."""
    folder, outside = save(tmp_path, 1, model).parent, tmp_path / "outside"
    outside.mkdir()
    for number, target in enumerate(("nowhere", "step-90000001", "step-00000001", outside)):
        (folder / f"step-9000000{number}").symlink_to(target)
    (outside / "mine").touch()
    assert checkpoint.latest(tmp_path).resolve().name == "step-00000001"
    for step in (2, 3):
        save(tmp_path, step, model, keep=1, is_best=True)
    assert (tmp_path / "best").resolve().name == "step-00000003" and (outside / "mine").exists()
    assert (folder / "step-00000003").is_dir() and not (folder / "step-00000002").exists()
