"""srcnn doctor: what is wrong with run folder, disk, ports, precision or packages, made for real, is named too."""

import errno
import fcntl
import os
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from examine import assert_note, assert_problem, content_of, examine, marked, num_found
from messages import numbers, says
from small import small_config, small_shards

from srcnn.commands.doctor import checkpoint_bytes
from srcnn.models.srcnn import ModelConfig
from srcnn.runtime.distributed import addresses_of
from srcnn.runtime.parallel import num_cores
from srcnn.training import checkpoint
from srcnn.training.optimizer import OptimizerConfig
from srcnn.training.trainer import train

on_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="asks for what only a machine without GPU lacks")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("made"))


def test_too_few_open_files_are_a_problem(shards):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (120, before[1]))
    try:
        examined = examine(shards)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert_problem(examined, 120, "ulimit -n")


@contextmanager
def small_disk(folder, options):
    """A file system of 64 KiB."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_problem(shards, tmp_path):
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        assert_problem(examine(shards, run=disk / "run"), f"{disk}/run", os.strerror(errno.ENOSPC))
        assert not list(disk.iterdir())


def test_a_disk_without_room_for_more_files_is_a_problem(shards, tmp_path):
    with small_disk(tmp_path / "disk", "nr_inodes=20") as disk:
        assert_problem(examine(shards, run=disk / "run"), f"{disk}/run", os.statvfs(disk).f_favail)


def test_a_disk_that_cannot_be_written_is_a_problem(shards, tmp_path):
    with small_disk(tmp_path / "disk", "ro") as disk:
        assert_problem(examine(shards, run=disk / "run"), f"{disk}/run", os.strerror(errno.EROFS))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_problem(shards, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o500)
    assert_problem(examine(shards, run=tmp_path / "theirs" / "run"), "theirs/run", os.strerror(errno.EACCES))


def test_a_file_where_the_run_folder_should_be_is_a_problem(shards, tmp_path):
    (tmp_path / "run").touch()
    assert_problem(examine(shards, run=tmp_path / "run"), f"{tmp_path}/run", "--run")
    assert_problem(examine(shards, run=tmp_path / "run" / "a" / "b"), f"{tmp_path}/run ")


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(run, shards))
    return run


def test_a_run_that_is_there_is_continued_or_done(shards, trained):
    before = content_of(trained)
    status, lines = examine(shards, run=trained)
    assert status == 0 and any(says(line, trained, 64, 128) for line in marked(lines, "ok"))
    assert_note(examine(shards, run=trained, total_samples=64), trained, 64, "total_samples")
    assert content_of(trained) == before


def test_a_run_of_another_training_is_refused(shards, trained):
    assert_problem(examine(shards, run=trained, seed=1), trained, "seed", 0, 1, "--run", "--fresh")
    assert examine(shards, "--fresh", run=trained, seed=1)[0] == 0


def test_what_a_continued_run_changes_is_noted(shards, trained):
    assert_note(examine(shards, run=trained, optimizer=OptimizerConfig(lr=3e-3)), "optimizer.lr", 0.003, 0.002)


def test_a_damaged_checkpoint_is_noted_and_the_one_before_it_taken(shards, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    newest = checkpoint.step_folders(run)[-1]
    (newest / checkpoint.TRAINING).write_bytes(b"cut off")
    assert_note(examine(shards, run=run), newest.name)


def test_a_run_that_another_training_writes_is_a_problem_unless_it_is_the_same_job(shards, trained, monkeypatch):
    lock = ("import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
            "print(flush=True); sys.stdin.read()")
    command = [sys.executable, "-c", lock, str(trained / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert_problem(examine(shards, run=trained), trained, "--run")
        monkeypatch.setenv("KUBERNETES_JOB_UID", "1234")
        (trained / ".job").write_text('{"id": "1234"}')
        assert_note(examine(shards, run=trained), trained)
        other.stdin.close()
    with (trained / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("changes", [{"name": "adam", "average_halflife_samples": 32}, {"name": "sgd"}])
def test_checkpoints_take_what_is_reckoned(shards, tmp_path, changes):
    config = small_config(tmp_path / "run", shards, optimizer=OptimizerConfig(**changes), model=ModelConfig())
    train(config)
    newest = checkpoint.step_folders(tmp_path / "run")[-1]
    files = [*newest.iterdir(), tmp_path / "run" / "checkpoint.pth"]
    taken = sum(path.stat().st_size for path in files)
    assert taken <= checkpoint_bytes(config) <= 2 * taken


def test_a_port_that_is_taken_is_a_problem_whose_cure_works(shards):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        status, lines = examine(shards, "--ranks", 2, "--port", port)
        assert examine(shards, "--ranks", 1, "--port", port)[0] == 0
    (line,) = marked(lines, "PROBLEM")
    assert status == 1 and says(line, port, "--main_process_port")
    (another,) = set(numbers(line)) - {port}
    assert examine(shards, "--ranks", 2, "--port", another)[0] == 0


def test_a_port_that_just_served_is_free_again(shards):
    """Its closed connections are remembered for a minute, which PyTorch's store does not mind."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("localhost", port)), server.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)
    assert examine(shards, "--ranks", 2, "--port", port)[0] == 0


@pytest.mark.parametrize("name", ["nowhere.invalid", "node..cluster", "n" * 64])
def test_a_first_machine_that_has_no_address_is_a_problem(shards, monkeypatch, name):
    monkeypatch.setenv("MASTER_ADDR", name)
    assert_problem(examine(shards, "--ranks", 2), "MASTER_ADDR", name, "--main_process_ip")


def test_a_name_is_resolved_as_the_system_does():
    assert "127.0.0.1" in addresses_of("127.0.0.1")
    with pytest.raises(OSError):
        addresses_of("nowhere.invalid")


@on_cpu
def test_fp16_without_a_gpu_is_a_problem(shards):
    assert_problem(examine(shards, mixed_precision="fp16"), "fp16", "--mixed_precision auto")


@on_cpu
def test_more_ranks_than_cores_are_noted(shards):
    assert_note(examine(shards, "--ranks", 64, "--port", 0, batch_size=64), 64, num_cores())


@pytest.mark.parametrize("precision", ["no", "bf16", "auto", None])
def test_other_precisions_are_no_problem(shards, precision):
    assert examine(shards, mixed_precision=precision)[0] == 0


@pytest.mark.slow
def test_a_torchvision_that_cannot_be_imported_is_a_problem_and_no_traceback(shards, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('no torchvision::nms')")
    settings = ["--shards", str(shards), "--run", str(tmp_path / "run"), "--batch_size", "8", "--trackers", "[]"]
    command = [sys.executable, "-m", "srcnn", "doctor", *settings]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    (line,) = marked(done.stdout.splitlines(), "PROBLEM")
    assert done.returncode == 1 and "no torchvision::nms" in line and "pip install --upgrade torch" in line


@on_cpu
def test_compiling_without_a_compiler_is_a_problem(shards, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert_problem(examine(shards, compile=True), "C++", "--compile false")


def test_a_tracker_that_is_not_installed_is_a_problem(shards, monkeypatch):
    assert examine(shards, trackers=["tensorboard"])[0] == 0
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as far as imports go it is not there
    assert_problem(examine(shards, trackers=["tensorboard"]), "pip install tensorboard")


def test_wandb_without_an_account_is_noted(shards, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert_note(examine(shards, trackers=["wandb"]), "offline", "wandb login", "srcnn sync")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert num_found(examine(shards, trackers=["wandb"])[1]) == [0, 0]


def test_mlflow_without_a_server_is_a_problem_and_not_installed_another(shards, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert_problem(examine(shards, trackers=["mlflow"]), "MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert num_found(examine(shards, trackers=["mlflow"])[1]) == [0, 0]
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert_problem(examine(shards, trackers=["mlflow"]), "pip install mlflow-skinny")
