"""The model of scaling: what must hold whatever the inputs are, an example by hand, and the page."""

import json
from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.scaling_model import (
    GRADIENT_BYTES,
    SIZES,
    Inputs,
    all_reduce_seconds,
    inputs_of,
    parts_of_step,
    predict,
    read_measurements,
    requests_per_pair,
    storages,
    strong,
    weak,
)
from srcnn.srcnn_model import SRCNN, ModelConfig

pytestmark = pytest.mark.slow  # of what is measured once, not of the product
DEVICE = "resident: device"
EVERY = list(storages(Inputs(), 1))


def test_gradients_are_those_of_the_network():
    assert GRADIENT_BYTES == sum(4 * parameter.numel() for parameter in SRCNN(ModelConfig(), False).parameters())


@pytest.mark.parametrize("storage", [name for name in EVERY if "cache, epoch" not in name])  # reads two ways at once
def test_one_gpu_has_efficiency_one_and_more_have_less(storage):
    for predictions in (weak(Inputs(), storage), strong(Inputs(), storage)):
        efficiencies = [one.efficiency for one in predictions]
        assert efficiencies[0] == 1
        assert efficiencies == sorted(efficiencies, reverse=True) and efficiencies[-1] > 0


@pytest.mark.parametrize("storage", EVERY)
def test_rates_grow_with_every_gpu(storage):
    for predictions in (weak(Inputs(), storage), strong(Inputs(), storage)):
        rates = [one.tiles_per_second for one in predictions]
        assert rates == sorted(set(rates)) and len(rates) == len(SIZES)


def test_a_node_that_waits_for_pairs_does_so_among_any_number():
    predictions = [one for one in weak(Inputs(), "object store") if one.ranks >= 8]
    assert {one.limit for one in predictions} == {"network"}
    assert len({one.seconds for one in predictions}) == 1


def test_ranks_that_never_wait_differ_from_one_rank_by_the_all_reduce():
    for storage in ("page cache of the node", "resident: host", DEVICE):
        one, *more = weak(Inputs(), storage)
        for many in more:
            assert many.seconds - one.seconds == pytest.approx(all_reduce_seconds(Inputs(), many.ranks))


@pytest.mark.parametrize("ranks", [2, 8, 64, 1024])
def test_a_larger_batch_is_more_efficient(ranks):
    efficiencies = [predict(Inputs(), DEVICE, ranks, tiles).efficiency for tiles in (16, 32, 64, 128, 256)]
    assert efficiencies == sorted(set(efficiencies))


def test_a_resident_set_needs_no_reading():
    parts = parts_of_step(Inputs(), storages(Inputs(), 128)[DEVICE], 1024, 256)
    assert {name for name, seconds in parts.items() if seconds} == {"computing", "step overhead", "all-reduce"}
    assert parts_of_step(Inputs(), storages(Inputs(), 1)["resident: host"], 8, 256)["network"] == 0


def test_a_cache_helps_one_node_and_hardly_many():
    inputs = Inputs()
    for nodes, share in ((1, 0), (2, 0.5), (128, 127 / 128)):
        plain, cached = (storages(inputs, nodes)[name] for name in ("object store", "object store + cache, epoch 2"))
        assert cached.network_bytes == pytest.approx(share * plain.network_bytes)
        assert cached.network_bytes + cached.disk_bytes == pytest.approx(plain.network_bytes)
    first = storages(replace(inputs, epoch=1), 4)["object store + cache, epoch 1"]
    assert first.disk_bytes == 0


def test_a_cache_helps_any_number_of_nodes_whose_lanes_are_kept():
    for epoch, from_disk in ((1, 0), (2, 34_816), (3, 34_816)):
        cached = storages(replace(Inputs(), epoch=epoch), 128)[f"object store + cache, lanes kept, epoch {epoch}"]
        assert (cached.network_bytes, cached.disk_bytes) == (34_816 - from_disk, from_disk)


def test_few_runs_are_asked_for_twice():
    for num_pairs in (100, 16_384, 1_000_000, 10_000_000):
        assert 1 <= 16 * requests_per_pair(replace(Inputs(), num_pairs=num_pairs)) <= 1 + 1 / 32


def test_an_example_by_hand():
    inputs = replace(
        Inputs(), tiles_per_second=1000.0, step_overhead_ms=10.0, all_reduce_latency_us=100.0, node_hop_us=0.0,
        all_reduce_gb_per_second=0.032516,
    )
    # 90 ms of computing, 10 of overhead, 0.1 of latency and 1 for 2 x 1/2 of 32,516 bytes
    assert predict(inputs, DEVICE, 1, 90).tiles_per_second == pytest.approx(900)
    two = predict(inputs, DEVICE, 2, 90)
    assert two.seconds == pytest.approx(0.1011)
    assert (two.tiles_per_second, two.efficiency) == (pytest.approx(180 / 0.1011), pytest.approx(0.1 / 0.1011))
    # 8 GPUs of a node share 0.01 GB/s: 8 x 90 x 34,816 bytes, and nothing else counts
    slow = replace(inputs, node_read_gb_per_second=0.01)
    assert predict(slow, "object store", 8, 90).seconds == pytest.approx(8 * 90 * 34_816 / 1e7)
    assert predict(slow, "object store", 8, 90).limit == "network"


def test_all_reduces_are_near_published_ones():
    nccl = replace(Inputs(), all_reduce_latency_us=6.8)
    few_bytes = replace(nccl, all_reduce_gb_per_second=1e9)
    assert 1e6 * all_reduce_seconds(nccl, 16) == pytest.approx(40.1, rel=0.1)  # nccl-tests issue 319, H100
    assert 1e6 * all_reduce_seconds(few_bytes, 256) == pytest.approx(64, rel=0.1)  # nccl issue 652, A100
    assert 1e6 * all_reduce_seconds(Inputs(), 32) == pytest.approx(68, rel=0.1)  # ml-engineering, in PyTorch
    assert all_reduce_seconds(nccl, 1) == 0


def test_the_page_holds_what_the_script_gives():
    inputs, sources = inputs_of(read_measurements(scaling.MEASUREMENTS), {})
    page = scaling.PAGE.read_text()
    part = page.partition("<!-- scaling -->\n")[2].partition("<!-- end -->")[0]
    assert part == scaling.page_part(inputs, sources), "python -m benchmarks.scaling --page"
    assert len(page.splitlines()) <= 220


def test_every_input_says_where_it_is_from():
    inputs, sources = inputs_of(read_measurements(scaling.MEASUREMENTS), {"epoch": 3})
    assert inputs.epoch == 3 and sources["epoch"] == "given on the command line"
    assert all(source.startswith(("measured", "assumed", "chosen", "default", "given")) for source in sources.values())


def test_measured_steps_give_rate_and_overhead(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"from": "one GPU", "steps": {"100": 0.012, "200": 0.022, "400": 0.042}}))
    inputs, sources = inputs_of(read_measurements(scaling.MEASUREMENTS, path), {})
    assert inputs.tiles_per_second == pytest.approx(10_000)
    assert inputs.step_overhead_ms == pytest.approx(2)
    assert sources["tiles_per_second"].startswith("measured") and "one GPU" in sources["tiles_per_second"]


def test_wrong_measurements_end_with_a_line_that_says_so(tmp_path, capsys):
    assert scaling.main(["--measurements", str(tmp_path / "none.json")]) == 1
    assert "none.json: no measurements there" in capsys.readouterr().err
    path = tmp_path / "mine.json"
    for content, told in (
        ({"inputs": {"node_hop": {"value": 1, "from": "measured"}}}, "did you mean node_hop_us?"),
        ({"inputs": {"epoch": {"value": -1, "from": "chosen"}}}, "at least 0"),
        ({"inputs": {"epoch": {"value": 2}}}, "from"),
        ({"steps": {"32": 0.1}}, "two sizes"),
    ):
        path.write_text(json.dumps(content))
        assert scaling.main(["--measurements", str(path)]) == 1
        error = capsys.readouterr().err
        assert str(path) in error and told in error


def test_check_compares_two_ranks_with_one(capsys):
    measured = {"gloo_microseconds": {"2": 10_000.0}}
    told = scaling.check(measured, 9, one=100.0, two=171.0)  # 90 ms, and 10 for the all-reduce
    assert "predicted 180.0 tiles/s, measured 171.0: -5.0%" in told
    with pytest.raises(ValueError, match="--measure 2"):
        scaling.check({}, 9, 100.0, 171.0)


def test_predictions_are_written(tmp_path, capsys):
    assert scaling.main(["--json", str(tmp_path / "out.json"), "--tiles_per_second", "50000"]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["inputs"]["tiles_per_second"] == 50_000
    assert set(written["weak"]) == set(EVERY) and len(written["strong"]) == len(SIZES)
    assert "**Predicted, not measured.**" in capsys.readouterr().out


@pytest.mark.slow
def test_gloo_is_measured(tmp_path):
    scaling.measure(tmp_path / "mine.json", 2, rounds=1)
    measured = read_measurements(tmp_path / "mine.json")
    assert measured["gloo_microseconds"]["2"] > 0
