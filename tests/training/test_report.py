"""The report of a run: one page that stands alone, with what was measured, and nothing in it that a stranger wrote."""

import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from small import small_config, small_shards

from srcnn.data.dataset import ShardDataset
from srcnn.data.photo_list import read_photo_records
from srcnn.models.weights import load_model
from srcnn.photos.tiling import grid, join
from srcnn.restoration.restore import restore
from srcnn.tracking.cluster_job import JobHistory, read_starts
from srcnn.training import report_scores
from srcnn.training.machine import commit
from srcnn.training.report import duration, split_settings, time_text, write_report
from srcnn.training.report_charts import CHARTS, MAX_DRAWN, draw_chart, smooth, ticks
from srcnn.training.report_page import MOVE, SORT
from srcnn.training.report_scores import score_split
from srcnn.training.trainer import train

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards):
    run = tmp_path_factory.mktemp("trained") / "my run"
    train(small_config(run, shards))
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name, symlinks=True)


def page_of(run):
    return (run / "report/index.html").read_text()


def cells(page, heading):
    """The rows of the table in the section of this heading."""
    part = page.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    return [re.findall("<td>(.*?)</td>", row) for row in part.split("<tr>")[2:]]


def test_the_page_stands_alone_and_says_what_was_trained_on_what(trained, shards):
    page = page_of(trained)
    for pattern in (r"""\b(?:src|href|srcset|action|poster)\s*=(?!"data:)""", r"url\(", "@import", "<link", "<script"):
        assert not re.search(pattern, page), pattern
    assert 20_000 < len(page) < 4_000_000
    val = ShardDataset(shards / "val").manifest
    start = read_starts(trained).lines[0]
    for told in ("<h1>my run</h1>", "JPEG quality 20", val.hash(), "SRCNN 9-1-5", start["time"], start["end"]["time"],
                 start["machine"]["device"], start["machine"]["torch"], start["facts"]["nodes"], "complete",
                 "total_samples</dt><dd>64", f"{val.degraded_psnr:.2f} \u2192"):
        assert told in page, told
    assert page.count("<svg") == 4 and page.count("<h1") == page.count("</html>") == 1


@pytest.mark.parametrize(("gain", "told"), [
    (1, '"card"><p>Val.*?<em>[+]1.00 dB'), (-1, '"card loss"><p>Val.*?<em>-1.00 dB')])
def test_the_gain_is_shown_with_its_sign(run, shards, gain, told):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"val/psnr": line["val/psnr_in"] + gain} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run, ShardDataset(shards / "val"))
    assert re.search(told, page_of(run))


def test_only_the_two_handlers_of_the_page_may_run(trained):
    page = page_of(trained)
    policy = html.unescape(re.search('Content-Security-Policy" content="(.*?)"', page)[1])
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" for code in (MOVE, SORT)}
    assert "default-src 'none'" in policy and set(re.findall(r"'sha256-[^']+'", policy)) == hashes
    assert {html.unescape(code) for code in re.findall(' on[a-z]+="(.*?)"', page)} == {MOVE, SORT}


def test_photos_are_listed_with_their_psnr_best_gain_first(trained, shards):
    reader, model = ShardDataset(shards / "val"), load_model(trained)
    expected = {}
    for number, record in enumerate(read_photo_records(reader.storage, reader.manifest)):
        samples = 15 * number + np.arange(15)
        clean, degraded = (join(tiles, *grid(record.height, record.width, 32)) for tiles in reader.read(samples))
        before, after = (10 * np.log10(255**2 / np.mean((clean.astype(float) - other) ** 2))
                         for other in (degraded, restore(degraded, model)))
        expected[record.name] = [record.name, "15", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"]
    rows = cells(page_of(trained), "Photos")
    assert {row[0]: row for row in rows} == expected and len(rows) == 3
    assert [float(row[4]) for row in rows] == sorted((float(row[4]) for row in rows), reverse=True)


def test_large_splits_are_measured_in_part_spread_evenly(trained, shards, monkeypatch):
    reader, model = ShardDataset(shards / "val"), load_model(trained)
    monkeypatch.setattr(report_scores, "MAX_TILES", 30)
    scores = score_split(reader, model)
    assert len(scores.photos) == 2 and scores.num_photos == 3 and len(scores.tiles) == 30
    monkeypatch.setattr(report_scores, "MAX_PHOTOS", 1)
    assert len(score_split(reader, model).photos) == 1
    few = score_split(ShardDataset(shards / "val", 7), model)  # as when overfitting: of no photo are all tiles there
    assert few.photos == [] and len(few.tiles) == 7
    gains = [photo.tiles[number, 1] - photo.tiles[number, 0] for photo, number in few.tiles]
    assert gains == sorted(gains, reverse=True)


def test_a_photo_that_is_too_large_is_measured_in_part(trained, shards, monkeypatch):
    monkeypatch.setattr(report_scores, "MAX_SIDE", 70)
    scores = score_split(ShardDataset(shards / "val"), load_model(trained))
    assert {(photo.rows, photo.columns) for photo in scores.photos} == {(2, 2)}
    numbers = sorted(photo.samples.tolist() for photo in scores.photos)
    assert numbers[1] == [15, 16, 20, 21]


@pytest.mark.parametrize("place", ["config.yaml", "jobs.jsonl", "name"])
def test_what_a_stranger_wrote_is_shown_and_not_run(run, shards, place):
    if place == "config.yaml":
        (run / place).write_text(f"total_samples: 7\n? {json.dumps(HOSTILE)}\n: {json.dumps(HOSTILE)}\n")
    elif place == "jobs.jsonl":
        line = {"time": HOSTILE, "samples": HOSTILE, "tags": [HOSTILE], "facts": {"nodes": HOSTILE},
                "machine": {HOSTILE: [HOSTILE]}}
        (run / place).write_text(json.dumps(line) + "\n" + json.dumps({"end": HOSTILE, "time": 5}) + "\n")
    else:
        run = run.rename(run.with_name(HOSTILE.replace("/", "")))
    write_report(run, ShardDataset(shards / "val"))
    page = page_of(run)
    assert not re.search("<script|<img src=x", page) and "&lt;script&gt;alert(1)" in page
    assert page.count("<title>") - 1 == page.count("<circle")  # those of the curves' dots


@pytest.mark.parametrize("machine", [None, 7, [], {"device": 7}, {"a": "x" * 9999}])
def test_strange_or_no_starts_are_no_obstacle(run, shards, machine):
    line = {"time": 7, "samples": None, "tags": [], "facts": {}, "machine": machine, "end": machine}
    (run / "jobs.jsonl").write_text(json.dumps(line) + "\n")
    write_report(run, ShardDataset(shards / "val"))
    assert len(page_of(run)) < 4_000_000 and "x" * 999 not in page_of(run)
    (run / "jobs.jsonl").unlink()
    (run / "config.yaml").unlink()
    write_report(run, ShardDataset(shards / "val"))
    assert "not known" in page_of(run) and "unknown number" in (run / "report/card.md").read_text()


def test_training_shards_that_are_gone_are_named(run, tmp_path, shards):
    alone = shutil.copytree(shards / "val", tmp_path / "alone/val")
    write_report(run, ShardDataset(alone))
    assert "cannot be read" in page_of(run)


def test_smoothing_is_an_average_that_forgets_and_does_not_lag_at_the_start():
    tiles = np.array([0, 10, 30, 100, 110], float)
    values = np.array([5, 1, 7, 2, 9], float)
    expected = []
    for end in range(1, 6):
        weights = np.exp((tiles[:end] - tiles[end - 1]) / (0.06 * 110))
        expected.append((weights * values[:end]).sum() / weights.sum())
    np.testing.assert_allclose(smooth(np.stack([tiles, values], 1)), np.stack([tiles, expected], 1), rtol=1e-12)
    np.testing.assert_allclose(smooth(np.stack([tiles, np.full(5, 3.5)], 1))[:, 1], 3.5, rtol=1e-12)


def coordinates(svg, style):
    drawn = re.search(rf'class="line {style}" d="M(.*?)"', svg)[1]
    return np.array([[float(number) for number in place.split()] for place in drawn.split("L")])


def test_a_curve_lies_where_its_values_are():
    points = [{"samples": step, "val/psnr": 30 + step / 100} for step in (0, 100, 200, 400)]
    places = coordinates(draw_chart(CHARTS[0], points), "val")
    across = (places[:, 0] - places[0, 0]) / np.ptp(places[:, 0])
    up = (places[0, 1] - places[:, 1]) / np.ptp(places[:, 1])
    np.testing.assert_allclose(across, [0, 0.25, 0.5, 1], atol=2e-3)
    np.testing.assert_allclose(up, [0, 0.25, 0.5, 1], atol=2e-3)
    losses = [{"samples": step, "val/loss": 10.0 ** -step} for step in (1, 2, 4)]
    heights = coordinates(draw_chart(CHARTS[1], losses), "val")[:, 1]
    assert (heights[1] - heights[0]) * 2 == pytest.approx(heights[2] - heights[1], abs=0.5)


def test_a_long_run_is_drawn_with_few_points_and_gaps_are_left_out():
    random = np.random.default_rng(0)
    points = [{"samples": step, "train/psnr": value} for step, value in enumerate(random.normal(30, 1, 20_000))]
    assert len(coordinates(draw_chart(CHARTS[0], points), "train")) == MAX_DRAWN
    gaps = [{"samples": step, "val/psnr": np.nan if step == 3 else 30.0} for step in range(6)] + [{"samples": 9}]
    assert len(coordinates(draw_chart(CHARTS[0], gaps), "val")) == 5
    assert draw_chart(CHARTS[0], [{"samples": 1, "val/psnr": np.nan}]) == draw_chart(CHARTS[1], []) == ""


@pytest.mark.parametrize("value", [0.0, -5.0, 1e-30, 1e30, -1e30])
def test_extreme_values_are_drawn_within_the_drawing(value):
    for chart in CHARTS:
        for values in ([value], [value, value], [value, 30.0, -value]):
            points = [{"samples": step, chart.lines[0].key: number} for step, number in enumerate(values)]
            if svg := draw_chart(chart, points):
                places = coordinates(svg, chart.lines[0].style)
                assert (places >= 0).all() and (places <= [560, 300]).all()


@pytest.mark.parametrize(("low", "high", "logarithmic"), [(29.3, 33.1, False), (0, 24_000, False), (1e-4, 0.3, True),
                                                          (4e-4, 9e-4, True), (1e-9, 1e9, True)])
def test_ticks_are_few_and_within(low, high, logarithmic):
    found = ticks(low, high, logarithmic)
    assert 2 <= len(found) <= 12 and min(found) >= low and max(found) <= high and found == sorted(found)


def test_settings_that_differ_from_the_defaults_come_first():
    changed, others = split_settings({"seed": 3, "model": {"residual": True, "kernels": [9, 1, 5]}, "shards": "https://a:b@h/x",
                                      "unknown": None})
    assert changed == {"seed": "3", "model.residual": "true", "shards": "https://***@h/x", "unknown": "null"}
    assert others == {"model.kernels": "[9, 1, 5]"}


def test_the_time_is_the_sum_over_starts_and_says_where_it_is_not_known():
    first = {"time": "2026-01-01 23:59:00 UTC", "end": {"time": "2026-01-02 01:00:30 UTC"}}
    assert duration(JobHistory((first, first))) == (2 * 3690, True)
    assert duration(JobHistory((first, {"time": "2026-01-01 23:59:00 UTC"}))) == (3690, False)
    assert duration(JobHistory(({"time": 7, "end": {"time": "x"}},))) == (0, False)
    assert [time_text(seconds) for seconds in (45, 89, 720, 3599, 11_100)] == [
        "45 s", "89 s", "12 min", "1 h 0 min", "3 h 5 min"]


def test_the_commit_is_that_of_a_checkout_that_keeps_the_package(tmp_path):
    assert commit(tmp_path) == ""
    assert re.fullmatch(r"([0-9a-f]{12,}(-dirty)?)?", commit(Path(report_scores.__file__).parent))


@pytest.mark.slow
def test_the_slider_moves_the_table_sorts_and_nothing_is_loaded(trained):
    with chromium() as browser:
        page = browser.new_page()
        told, asked = [], []
        page.on("console", lambda message: told.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((trained / "report/index.html").as_uri())
        page.locator(".slider input").first.fill("20")
        assert "20%" in page.locator(".slider").first.get_attribute("style")
        table = page.locator("section", has_text="validation photos").locator("table").first
        for ascending in (False, True):
            table.locator("th button").nth(2).click()
            values = [float(value) for value in table.locator("td:nth-child(3)").all_text_contents()]
            assert values == sorted(values, reverse=not ascending) and len(set(values)) == 3
        assert told == [] and [url for url in asked if not url.startswith("data:")] == [page.url]
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
