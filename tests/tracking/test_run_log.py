"""metrics.jsonl, the progress bar and TensorBoard; trackers that fail. wandb itself: test_wandb.py, test_sync.py."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from messages import lines_with, says
from tensorboard.backend.event_processing import event_accumulator

from srcnn.tracking import run_log as module
from srcnn.tracking import tracker
from srcnn.tracking.cluster_job import read_starts
from srcnn.tracking.history import read_metrics
from srcnn.tracking.run_log import Tracking


def tracking(run, logged=-1, names=()):
    return Tracking(run, names, {"model": {"kernels": [9, 1, 5]}}, 100, max(logged, 0), logged, "id")


def progresses(run):
    return [point["samples"] for point in read_metrics(run)]


def test_points_are_written_in_order_and_read_back(tmp_path):
    record = tracking(tmp_path)
    record.log(10, {"train/loss": 0.5})
    record.log(20, {"val/psnr": 30.0, "train/loss": np.float32(0.25)})
    record.finish()
    assert read_metrics(tmp_path) == [{"samples": 10, "train/loss": 0.5},
                                      {"samples": 20, "val/psnr": 30.0, "train/loss": 0.25}]


@pytest.mark.parametrize("torn", [b"", b'{"samples": 4', b'{"samples": 15}', b"\xff\xfe\n", b"[1]\n\n"])
@pytest.mark.parametrize(("logged", "kept"), [(20, [10, 20]), (30, [10, 20, 30]), (9, []), (0, []), (-1, [])])
def test_points_past_the_checkpoint_and_torn_lines_are_dropped(tmp_path, torn, logged, kept):
    record = tracking(tmp_path)
    for samples in (10, 20, 30):
        record.log(samples, {"train/loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    record = tracking(tmp_path, logged)
    assert progresses(tmp_path) == kept
    record.log(40, {})
    assert progresses(tmp_path) == [*kept, 40]


def test_a_torn_line_in_the_middle_is_dropped_and_what_follows_stays(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"samples": 1}\n{"samp\n{"samples": 2}\n')
    tracking(tmp_path, 2)
    assert progresses(tmp_path) == [1, 2]


def test_no_numbers_is_a_named_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        read_metrics(tmp_path)


def test_a_run_folder_that_vanishes_gets_every_line_when_it_is_back(tmp_path, caplog):
    run, away = tmp_path / "run", tmp_path / "away"
    caplog.set_level("WARNING")
    record = tracking(run)
    record.log(1, {"train/loss": 0.5})
    run.rename(away)
    record.log(2, {"train/loss": 0.5})
    record.log(3, {"train/loss": 0.5})
    assert len(caplog.records) == 1 and says(caplog.text, run / "metrics.jsonl") and not run.exists()
    away.rename(run)
    record.log(4, {"train/loss": 0.5})
    assert progresses(run) == [1, 2, 3, 4] and len(caplog.records) == 2


def test_another_empty_run_folder_gets_every_line(tmp_path):
    run = tmp_path / "run"
    record = tracking(run, logged=-1)
    record.log(1, {})
    run.rename(tmp_path / "away")
    run.mkdir()
    record.log(2, {})
    assert progresses(run) == [1, 2]


def test_a_file_where_the_run_folder_should_be_stops_nothing(tmp_path, caplog):
    run = tmp_path / "run"
    run.write_text("in the way")
    record = tracking(run, names=["tensorboard"])
    record.log(1, {})
    run.unlink()
    record.log(2, {})
    record.finish()
    assert progresses(run) == [1, 2] and len(told_of_lines(run, caplog.text)) == 2


def told_of_lines(run, text):
    """What is said of metrics.jsonl but where a tracker has stopped."""
    return [line for line in lines_with(text, run / "metrics.jsonl") if "tensorboard" not in line]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from srcnn.tracking.run_log import Tracking
from srcnn.tracking.history import read_metrics
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
record = Tracking(Path(sys.argv[1]), [], {}, 100, 0, -1, "id")
for samples in range(1, 10):
    if samples == 3:  # in the middle of a line
        size = (Path(sys.argv[1]) / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 17, resource.RLIM_INFINITY))
    if samples == 7:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    record.log(samples, {"train/loss": 1 / samples})
    if samples == 5:
        torn = (Path(sys.argv[1]) / "metrics.jsonl").read_bytes()
        assert not torn.endswith(b"\\n"), torn  # the disk was full within a line
record.finish()
"""


def test_lines_that_do_not_fit_are_written_whole_and_in_order_when_there_is_room(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert progresses(tmp_path) == list(range(1, 10))
    assert len(told_of_lines(tmp_path, done.stderr)) == 2, "that they cannot be written, and that they are"


class Terminal(io.StringIO):
    """One that is closed after a while."""

    is_open = True

    def isatty(self):
        return True

    def write(self, text):
        if not self.is_open:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_terminal_that_is_closed_stops_nothing(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    record = tracking(tmp_path)
    record.advance(5)
    assert terminal.getvalue()
    terminal.is_open = False
    record.bar.mininterval = 0
    for samples in (6, 7):
        record.advance(samples)
        record.log(samples, {"train/loss": 0.5})
    record.finish()
    assert progresses(tmp_path) == [6, 7]


POINT = {"train/loss": 0.0012345, "train/psnr": 31.5, "val/psnr": 32.25, "val/gain": -0.5, "tiles_per_second": 25.0,
         "data_wait": 0.01, "learning_rate": 1e-3}


def test_people_are_told_loss_psnr_rate_and_time_left_without_raw_keys(tmp_path, caplog):
    caplog.set_level("INFO")
    tracking(tmp_path).log(50, POINT)
    line = caplog.messages[-1]
    for told in ("50 of 100", "0.00123", "31.50 dB", "25 tiles/s", "00:02 left", "32.25 dB", "-0.50 dB"):
        assert told in line
    assert not any(key in line for key in POINT)
    tracking(tmp_path).log(100, {"tiles_per_second": 0.0})
    assert "left" not in caplog.messages[-1]


def test_a_terminal_shows_a_bar_and_keeps_the_validations(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    record = tracking(tmp_path)
    record.bar.mininterval, record.bar.ncols = 0, 120
    record.advance(50)
    record.log(50, POINT)
    record.advance(51)
    record.finish()
    text = terminal.getvalue()
    assert "50 tiles: validation PSNR 32.25 dB (-0.50 dB over the input)\n" in text
    assert "51/100 tiles" in text and "0.00123" in text and not any(key in text for key in POINT)


@pytest.mark.parametrize("total", [640, 256_000, 1_280_000])
def test_the_bar_fits_80_columns_and_tells_loss_psnr_rate_once_and_time_left(tmp_path, monkeypatch, total):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    record = Tracking(tmp_path, [], {}, total, 0, -1, "id")
    record.bar.mininterval, record.bar.ncols = 0, 80
    record.bar.start_t -= 3600
    record.log(0, POINT)
    record.advance(total // 3)
    record.finish()
    line = next(part for part in reversed(terminal.getvalue().split("\r")) if f"{total // 3}/" in part).rstrip()
    assert len(line) <= 80 and "|" in line and says(line, "0.00123", "31.50 dB", f"{total // 3}/{total} tiles", "left")
    assert line.count("/s") == 1


def test_starts_and_ends_of_a_run_are_kept_with_what_it_ran_on(tmp_path):
    first = Tracking(tmp_path, [], {}, 100, 0, -1, "id", machine={"device": "a GPU"})
    first.log(10, {"val/psnr": 30.0})
    first.preempted("SIGTERM")
    first.finish()
    second = Tracking(tmp_path, [], {}, 100, 10, 10, "id")
    second.advance(100)
    second.ended("complete")
    second.finish()
    Tracking(tmp_path, [], {}, 100, 100, 100, "id").bar.close()  # killed
    lines = read_starts(tmp_path).lines
    ends = [line.get("end", {}) for line in lines]
    assert [line["samples"] for line in lines] == [0, 10, 100]
    assert [(end.get("end"), end.get("samples")) for end in ends] == [("stopped", 10), ("complete", 100), (None, None)]
    assert lines[0]["machine"] == {"device": "a GPU"} and lines[1]["machine"] == {}


def test_event_files_where_they_lay_before_are_gone_on_with(tmp_path, caplog):
    caplog.set_level("INFO")
    first = tracking(tmp_path, names=["tensorboard"])
    first.log(10, {"train/loss": 0.5})
    first.finish()
    assert lines_with(caplog.text, f"tensorboard --logdir {tmp_path / 'tensorboard'}")
    (tmp_path / "tensorboard").rename(tmp_path / "srcnn")
    second = tracking(tmp_path, 10, ["tensorboard"])
    second.log(20, {"train/loss": 0.25})
    second.finish()
    assert scalars(tmp_path) == [(10, 0.5), (20, 0.25)] and not (tmp_path / "srcnn").exists()


class Broken:
    """A tracker that does as it is told: raises, or never returns."""

    def __init__(self, fault):
        self.fault, self.release = fault, threading.Event()
        self.calls = 0

    def log(self, samples, values, pictures):
        self.calls += 1
        if self.fault == "raises":
            raise ConnectionError("gone")
        if self.fault == "hangs":
            self.release.wait()

    def finish(self, exit_code):
        if self.fault == "hangs at the end":
            self.release.wait()


@pytest.mark.parametrize("fault", ["raises", "hangs", "hangs at the end"])
def test_a_tracker_that_fails_is_named_once_with_the_cure_and_the_others_go_on(tmp_path, caplog, monkeypatch, fault):
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.2)
    broken = Broken(fault)
    monkeypatch.setattr(module, "Wandb", lambda *_: broken)
    record = tracking(tmp_path, names=["wandb", "tensorboard"])
    for samples in (1, 2, 3):
        record.log(samples, {"train/loss": 0.5})
    record.finish()
    broken.release.set()
    assert len(lines_with(caplog.text, "wandb")) == 1
    assert f"srcnn sync {tmp_path}" in caplog.text
    assert broken.calls == (1 if fault in ("raises", "hangs") else 3)
    assert progresses(tmp_path) == [1, 2, 3]
    assert scalars(tmp_path) == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_a_tracker_that_takes_nothing_is_left_out_before_it_fills_the_memory(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracker, "MAX_PENDING", 5)
    broken = Broken("hangs")
    monkeypatch.setattr(module, "Wandb", lambda *_: broken)
    record = tracking(tmp_path, names=["wandb"])
    for samples in range(1, 20):
        record.log(samples, {})
    assert len(lines_with(caplog.text, "wandb")) == 1 and record.threads[0].pending.qsize() <= 5
    broken.release.set()
    record.finish()


def test_a_tracker_that_is_not_installed_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    record = tracking(tmp_path, names=["tensorboard"])
    record.finish()
    assert len(lines_with(caplog.text, "tensorboard", tmp_path / "metrics.jsonl")) == 1


def scalars(run, title="train/loss"):
    events = event_accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(title)]


def test_tensorboard_shows_each_point_once_after_a_kill(tmp_path):
    first = tracking(tmp_path, names=["tensorboard"])
    for samples in (10, 20, 30):
        first.log(samples, {"train/loss": 0.5}, {"tiles": np.zeros((8, 8, 3), np.uint8)})
    first.threads[0].finish(0, 60)
    time.sleep(1.1)  # event files are read in the order of their names, which begin with the second
    second = tracking(tmp_path, 10, ["tensorboard"])
    for samples in (20, 30, 40):
        second.log(samples, {"train/loss": 0.25}, {"tiles": np.zeros((8, 8, 3), np.uint8)})
    second.finish()
    assert scalars(tmp_path) == [(10, 0.5), (20, 0.25), (30, 0.25), (40, 0.25)]
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("tiles")] == [10, 20, 30, 40]
    assert len(list((tmp_path / "tensorboard").glob("*/events.*"))) == 1  # the hyperparameters, once


def test_hyperparameters_have_no_credentials_and_no_depth():
    config = {"shards": "https://ann:hunter2@host/x?sig=c2VjcmV0", "model": {"kernels": [9, 1, 5], "residual": True}}
    assert tracker.hyperparameters(config) == {
        "shards": "https://***@host/x?sig=***", "model.kernels": "[9, 1, 5]", "model.residual": True}


def test_processes_that_are_not_the_main_one_do_nothing(tmp_path):
    record = tracking(tmp_path, names=None)
    assert record.threads == []
    record.advance(1)
    record.log(1, {"train/loss": 0.5})
    record.log_artifact("best", tmp_path)
    record.preempted()
    record.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 64 KiB of room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_points_and_takes_them_when_there_is_room(small_disk, caplog):
    record = tracking(small_disk)
    record.log(1, {"train/loss": 0.5})
    with (small_disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for samples in range(2, 200):  # past the page that the file has
        record.log(samples, {"train/loss": 0.5})
    assert os.statvfs(small_disk).f_bavail == 0 and len(told_of_lines(small_disk, caplog.text)) == 1
    for line in (small_disk / "metrics.jsonl").read_bytes().splitlines()[:-1]:
        json.loads(line)
    (small_disk / "ballast").unlink()
    record.finish()
    assert progresses(small_disk) == list(range(1, 200))
