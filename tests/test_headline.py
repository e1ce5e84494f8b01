"""benchmarks.headline: a tiny network on the CPU, all the way to the table; and on again where the time was over."""

import json
import subprocess
import time

import pytest
from small import small_shards, write_photos

from benchmarks import headline

pytestmark = pytest.mark.slow  # of what is measured once, not of the product


@pytest.fixture
def photos(tmp_path):
    for folder in ("live1_y", "city20"):
        write_photos(tmp_path / "photos" / "val" / folder, 2, 61, 83)
    return tmp_path / "photos"


def test_a_run_is_planned_trained_and_scored_beside_what_is_published(tmp_path, photos, monkeypatch):
    shards = small_shards(tmp_path / "data")
    arguments = ["--quick", "--photos", str(photos), "--shards", str(shards), "--work", str(tmp_path / "work")]
    with pytest.raises(SystemExit, match="less than 10 steps"):
        headline.main([*arguments, "--minutes", "0.01"])
    assert not (tmp_path / "work" / "plan.json").exists()
    monkeypatch.setattr(headline, "plan_of", lambda options, settings, deadline: PLAN)
    assert headline.main([*arguments, "--minutes", "5"]) == 0
    result = json.loads((tmp_path / "work" / "headline.json").read_text())
    assert result["is_done"] and result["network"] == "U-Net 4-6" and result["parameters"] == 1531
    assert list(result["scores"]) == ["live1_y, Y, quality 20", "city20, Y, quality 20", "city20, L, quality 20"]
    text = (tmp_path / "work" / "headline.md").read_text()
    assert "| live1_y, Y, quality 20 | DnCNN-3, published | 31.59 |" in text and "Zhang et al." in text
    scores = result["scores"]["live1_y, Y, quality 20"]
    assert f"| U-Net 4-6, measured | {scores['psnr']:.2f} | {scores['gain']:+.2f} |" in text
    assert "after 40 of 40 tiles" in text
    assert result["halo"]["pixels"] == 12 and result["halo"]["largest_error_levels"] < 0.01  # all that a pixel sees
    PLAN["total_samples"] = 10**6
    monkeypatch.setattr(headline, "launch", impatient(tmp_path / "work" / "run" / "metrics.jsonl"))
    assert headline.main([*arguments, "--minutes", "5"]) == 0  # goes on with the run, until the time is over
    result = json.loads((tmp_path / "work" / "headline.json").read_text())
    assert not result["is_done"] and 40 < result["samples"] < 10**6
    assert "step-00000010" < max(path.name for path in (tmp_path / "work" / "run" / "checkpoints").iterdir())


def impatient(metrics, launch=headline.launch):
    """`launch`, whose process the time is over for as soon as it has told of its training."""
    num_lines = len(metrics.read_text().splitlines())

    def launched(options, script, settings):
        process = launch(options, script, settings)
        wait = process.wait

        def wait_for_a_line(timeout=None):
            while timeout and len(metrics.read_text().splitlines()) == num_lines:
                assert process.poll() is None
                time.sleep(0.1)
            if timeout:
                raise subprocess.TimeoutExpired("train", timeout)
            return wait()

        process.wait = wait_for_a_line
        return process

    return launched


PLAN = {"config": "unet-q20.yaml", "minutes": 5, "total_samples": 40, "tiles_per_second": 1.0, "device": "this"}


def test_the_plan_is_what_fits_into_the_time_and_is_kept(tmp_path, monkeypatch):
    told = {"tiles_per_second": 100.0, "batch_size": 64, "device_of_each": "x", "gflop_per_tile": 1, "memory_gib": 1}

    class Done:
        def wait(self):
            return 0

    def measured(options, script, settings):
        (tmp_path / "rate.json").write_text(json.dumps(told))
        clock[0] += 30
        return Done()

    clock = [1000.0]
    monkeypatch.setattr(headline.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(headline, "launch", measured)
    options = headline.parse(["--work", str(tmp_path), "--minutes", "10"])
    plan = headline.plan_of(options, [], deadline=1000.0 + 600)
    assert plan["total_samples"] == 64 * int(0.93 * 100 * (600 - 30 - 30) / 64)
    clock[0] += 10_000
    assert headline.plan_of(options, [], deadline=0) == plan


def test_every_published_number_has_a_source_and_a_place():
    for sets in headline.PUBLISHED.values():
        for name, rows in sets.items():
            assert name in headline.METHODS and len(rows) == len(headline.QUALITIES)
            assert all(25 < psnr < 35 and 0.7 < ssim < 1 and psnr_b < psnr for psnr, ssim, psnr_b in rows)
