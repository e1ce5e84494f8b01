"""metrics.jsonl and the trackers on their own."""

import pytest
from accelerate import Accelerator

from srcnn.tracking import Tracking, read_metrics


def tracking(run, start=0, log_with=None):
    accelerator = Accelerator(cpu=True, log_with=log_with, project_dir=str(run))
    return Tracking(accelerator, run, {"model": {"kernels": [9, 1, 5]}}, 100, start, "id")


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


def test_a_tracker_that_breaks_midway_is_named_once_and_the_numbers_go_on(tmp_path, caplog):
    record = tracking(tmp_path, log_with="tensorboard")
    assert not record.broken

    class Broken:
        name = "tensorboard"
        tracker = None

        def log(self, *args, **kwargs):
            raise ConnectionError("gone")

    record.accelerator.trackers = [Broken()]
    for samples in (1, 2, 3):
        record.log(samples, {"train/loss": 0.5})
    assert caplog.text.count("tracking stopped") == 1 and "gone" in caplog.text
    assert len(read_metrics(tmp_path)) == 3
