"""metrics.jsonl and the trackers on their own."""

import sys

import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator

from srcnn.tracking import Tracking, read_metrics


def tracking(run, start=0, trackers=()):
    return Tracking(run, trackers, {"model": {"kernels": [9, 1, 5]}}, 100, start, "id")


def test_points_are_written_in_order_and_read_back(tmp_path):
    record = tracking(tmp_path)
    record.log(10, {"train/loss": 0.5})
    record.log(20, {"val/psnr": 30.0})
    record.finish()
    assert read_metrics(tmp_path) == [{"samples": 10, "train/loss": 0.5}, {"samples": 20, "val/psnr": 30.0}]


def test_points_past_the_start_and_torn_lines_are_dropped(tmp_path):
    record = tracking(tmp_path)
    for samples in (10, 20, 30):
        record.log(samples, {"train/loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"samples": 4')
    tracking(tmp_path, start=20)
    assert [point["samples"] for point in read_metrics(tmp_path)] == [10, 20]


def test_no_numbers_is_a_named_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        read_metrics(tmp_path)


class Broken:
    """A tracker whose server is gone."""

    tracker = None

    def log(self, *args, **kwargs):
        raise ConnectionError("gone")


def test_a_tracker_that_breaks_midway_is_named_once_and_the_others_go_on(tmp_path, caplog):
    record = tracking(tmp_path, trackers=["tensorboard"])
    record.trackers = {"wandb": Broken()} | record.trackers
    for samples in (1, 2, 3):
        record.log(samples, {"train/loss": 0.5})
    assert caplog.text.count("tracking with wandb stopped") == 1 and "gone" in caplog.text
    assert list(record.trackers) == ["tensorboard"]
    record.finish()
    assert len(read_metrics(tmp_path)) == 3
    events = event_accumulator.EventAccumulator(str(tmp_path / "srcnn")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_a_tracker_that_is_not_installed_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    record = tracking(tmp_path, trackers=["tensorboard"])
    assert "tracking with tensorboard stopped" in caplog.text and not record.trackers


def test_processes_that_are_not_the_main_one_write_nothing(tmp_path):
    record = tracking(tmp_path, trackers=None)
    record.log(1, {"train/loss": 0.5})
    record.finish()
    assert list(tmp_path.iterdir()) == []
