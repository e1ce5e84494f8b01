"""`python -m benchmarks.gpu`: all of its code that runs on a CPU, and what it makes of what it finds."""

import importlib.machinery
import json
import sys
import time
import types
from dataclasses import fields

import pytest
import torch

from benchmarks import (
    gpu,
    gpu_fused,
    gpu_kernels,
    gpu_material,
    gpu_part,
    gpu_report,
    gpu_restoring,
    gpu_step,
    gpu_stream,
    gpu_training,
)
from benchmarks.gpu_part import Part, TooLong, alarm
from srcnn.srcnn_model import SRCNN, ModelConfig
from srcnn.stream import Batch

pytestmark = pytest.mark.slow  # of what is measured once, not of the product
CUDA_ONLY = ("as a CUDA graph", "nvJPEG", "float16")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder with quick shards: 2 photos of 12 tiles of 32 for each split."""
    folder = tmp_path_factory.mktemp("gpu")
    gpu_material.measure(part_of(folder, "material"))
    return folder


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    yield
    gpu_part.forget_accelerator()


def part_of(folder, name, seconds=300.0):
    return Part(name, folder / "gpu.json", folder, time.time() + seconds, quick=True, device=torch.device("cpu"))


def noted(part):
    return json.loads(part.results.read_text())["parts"][part.name]


def assert_only_cuda_is_missing(part):
    failed = noted(part).get("failed", {})
    assert all(any(name in what for name in CUDA_ONLY) for what in failed), failed


def random_batch(num_tiles, tile_pixels=24):
    generator = torch.Generator().manual_seed(0)
    clean, degraded = (torch.randint(256, (num_tiles, tile_pixels, tile_pixels), generator=generator, dtype=torch.uint8)
                       for _ in range(2))
    return Batch(clean, degraded, torch.arange(num_tiles), torch.zeros(num_tiles, dtype=torch.uint8))


def test_traffic_of_a_training_tile_by_hand():
    features, mapped, pixels = 64 * 124**2, 32 * 124**2, 128**2
    forward = (pixels + features) + (features + mapped) + (mapped + pixels)
    backward = (mapped + pixels + mapped) + (features + mapped + features) + (pixels + features)
    assert gpu_step.layer_traffic(ModelConfig(), 128) == 2 * (forward + backward)


def test_each_rung_changes_one_thing():
    before = None
    for name, rung in gpu_step.ladder():
        if before is not None:
            changed = [field.name for field in fields(rung) if getattr(rung, field.name) != getattr(before, field.name)]
            assert len(changed) == 1, name
        before = before if name.startswith("(") else rung
    assert before == gpu_step.BEST_EAGER


def test_micro_batches_have_the_gradient_of_the_batch():
    gradients = []
    for micro_batch in (0, 2):
        network = SRCNN()
        torch.manual_seed(1)
        for weights in network.parameters():
            torch.nn.init.normal_(weights, std=0.05)
        seen = {}
        network.conv1.weight.register_post_accumulate_grad_hook(lambda weights: seen.update(it=weights.grad.clone()))
        rung = gpu_step.Rung(ours=True, micro_batch=micro_batch)
        gpu_step.build(rung, random_batch(5), torch.device("cpu"), network).step()
        gradients.append(seen["it"])
    assert torch.linalg.norm(gradients[0]) > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-8)


def test_the_step_is_measured(work):
    part = part_of(work, "step")
    gpu_step.measure(part)
    found = noted(part)
    assert_only_cuda_is_missing(part)
    assert {name for name, _ in gpu_step.ladder()} < found["rates"].keys()
    assert all(row["tiles_per_second"] > 0 for row in found["rates"].values())
    assert found["source_loader"][0]["tiles_per_second"] > 0
    assert found["floors"]["flop_per_tile"] > 0 and found["floors"]["copy_bytes_per_second"] > 0
    assert sum(row["share"] for row in found["profile"]["kernels"]) <= 1 + 1e-9
    assert (work / found["profile"]["picture"]).read_bytes().startswith(b"\x89PNG")


def test_the_stream_is_measured(work):
    part = part_of(work, "stream")
    gpu_stream.measure(part)
    rows = noted(part)["rows"]
    assert not noted(part).get("failed")
    assert {row["resident"] for row in rows} == {"device", "host", "no"}
    assert all(row["tiles_per_second"] > 0 and row["epoch_seconds"] > 0 and row["data_wait"] >= 0 for row in rows)


def test_the_quality_is_measured(work):
    part = part_of(work, "quality")
    gpu_training.measure_quality(part)
    assert_only_cuda_is_missing(part)
    losses = {name: row["last_loss"] for name, row in noted(part)["rows"].items()}
    source = losses.pop("source's loop, float32")
    assert {"srcnn, float32", "srcnn, bfloat16"} <= losses.keys()
    assert all(loss == pytest.approx(source, rel=0.01) for loss in losses.values())


def test_restoring_is_measured(work):
    part = part_of(work, "restoring")
    gpu_restoring.measure(part)
    assert_only_cuda_is_missing(part)
    found = {(row["what"], row["by"]): row["mp_per_second"] for row in noted(part)["rows"]}
    assert found["luma to luma", "srcnn"] > 0 and found["luma to luma", "PyTorch, eager"] > 0
    assert found["folder of small photos", "srcnn"] > 0 and found["decode small photos", "Pillow"] > 0


@pytest.mark.slow
def test_the_result_is_trained_by_the_launcher(work):
    part = part_of(work, "result")
    gpu_training.measure_result(part)
    found = noted(part)
    assert not found.get("failed")
    tiles = [row["tiles"] for row in found["points"]]
    assert tiles == sorted(tiles) and tiles[-1] == gpu_training.QUICK_TILES
    assert (work / found["weights"]).is_file()
    assert found["shipped"]["psnr"] > found["shipped"]["psnr_in"]


def test_a_fused_kernel_is_compared(work, monkeypatch):
    class Fused(torch.nn.Module):
        """Off by a thousandth."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            with torch.autocast("cpu", enabled=False):
                return (1.001 * self.model(pixels.float())).to(pixels.dtype)

        def named_parameters(self, *arguments, **names):
            return self.model.named_parameters(*arguments, **names)

    module = types.ModuleType(gpu_fused.MODULE)
    module.__spec__ = importlib.machinery.ModuleSpec(gpu_fused.MODULE, None)
    module.FusedSRCNN, module.fused_available = Fused, lambda device: True
    monkeypatch.setitem(sys.modules, gpu_fused.MODULE, module)
    part = part_of(work, "fused")
    gpu_fused.measure(part)
    found = noted(part)
    assert not found.get("failed")
    assert found["errors"]["fused"]["output"] == pytest.approx(1e-3, rel=0.01)
    assert {"forward, fused", "forward and backward, compiled", "step, fused"} <= found["rates"].keys()


def test_time_within_others_is_not_counted_twice():
    def event(name, start, duration, kind="cpu_op", thread=1):
        return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": duration, "pid": 1, "tid": thread}

    trace = [event("outer", 0, 3000), event("inner", 500, 1200), event("inner", 1700, 300), event("other", 100, 900,
             thread=2), event("else", 0, 99, kind="python_function")]
    rows = {row["kernel"]: row for row in gpu_kernels.by_time(trace, {"cpu_op"})}
    num_steps = gpu_kernels.NUM_STEPS
    assert {name: round(row["ms"] * num_steps, 6) for name, row in rows.items()} == \
        {"outer": 1.5, "inner": 1.5, "other": 0.9}
    assert rows["inner"]["calls"] * num_steps == pytest.approx(2)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


def test_what_a_part_leaves_goes_to_the_next():
    names = list(gpu.PARTS)
    left, given = 600.0, []
    for number in range(len(names)):
        given.append(gpu.allowed_seconds(names[number:], left))
        left -= given[-1]
    assert left == pytest.approx(0)
    assert given[1] == pytest.approx(600 * gpu.PARTS["step"].share / sum(share.share for share in gpu.PARTS.values()))
    assert gpu.allowed_seconds(names[1:], 600.0) > given[1]
    assert gpu.allowed_seconds(names[:1], -5.0) == 0


def test_what_fails_is_noted_and_the_next_is_tried(tmp_path):
    part = part_of(tmp_path, "step")
    assert part.attempt("wrong", lambda: 1 / 0) is None
    assert part.attempt("slow", lambda: time.sleep(30), seconds=0.1) is None
    assert part.attempt("right", lambda: 7) == 7
    part.until = time.time() - 1
    assert part.attempt("late", lambda: 7) is None
    part.note(rates={})
    assert {name: why.partition(":")[0] for name, why in noted(part)["failed"].items()} == \
        {"wrong": "ZeroDivisionError", "slow": "TooLong", "late": "TooLong"}


def test_an_alarm_within_another_leaves_it_ringing():
    with pytest.raises(TooLong, match="0 s"), alarm(0.4):
        with alarm(60):
            time.sleep(0.01)
        time.sleep(5)


def test_a_part_that_is_cut_off_leaves_what_it_found(tmp_path):
    options = gpu.parse(["--quick", "--work", str(tmp_path), "--json", str(tmp_path / "gpu.json")])
    earlier = part_of(tmp_path, "material")
    earlier.note(train_tiles=24)
    began = time.monotonic()
    assert gpu.run_part(options, "step", time.time() + 1) == "cut off"
    assert time.monotonic() - began < 1 + 3 * gpu.GRACE_SECONDS
    assert noted(earlier) == {"train_tiles": 24}


def test_targets_are_met_or_missed_or_not_measured():
    floors = {"arithmetic_tiles_per_second": 1e6, "traffic_tiles_per_second": 2e5}
    rates = {"source's loop, batch 32": {"tiles_per_second": 4e3, "source": True},
             "srcnn's train_step": {"tiles_per_second": 6e4, "compile": True}, "best": {"tiles_per_second": 7e4}}
    parts = {
        "step": {"floors": floors, "rates": rates, "source_loader": [{"tiles_per_second": 2e3}]},
        "stream": {"rows": [{"tiles_per_second": 5e4, "data_wait": 0.05, "epoch_seconds": 0.3},
                            {"tiles_per_second": 1e4, "data_wait": 0.01, "epoch_seconds": 1.3}]},
        "quality": {"rows": {"source's loop, float32": {"psnr": 30.0}, "srcnn, bfloat16": {"psnr": 29.96},
                             "source's loop, TF32": {"psnr": 20.0}}},
    }
    found = gpu_report.targets(parts)
    assert {key: one["met"] for key, one in found.items()} == {
        "times_source": True, "times_source_best": True, "times_source_loaded": False, "share_of_floor": False,
        "data_wait": False, "epoch_seconds": True, "decibels_lost": True}
    assert found["times_source"]["found"] == pytest.approx(15)
    assert found["share_of_floor"]["found"] == pytest.approx(0.35)
    assert found["decibels_lost"]["found"] == pytest.approx(0.04)
    assert all(one == {"found": None, "met": None} for one in gpu_report.targets({}).values())


def test_tables_of_a_run_that_was_cut_off(tmp_path):
    whole = {"about": gpu.about(gpu.parse(["--quick"])), "targets": gpu_report.targets({}),
             "parts": {name: {"ended": "cut off", "seconds": 1.0} for name in gpu.PARTS}}
    text = gpu_report.tables(whole)
    assert "- stream: ended cut off after 1 s" in text and "not measured" in text
    assert all(f"### {name}" in text for name in gpu.PARTS if name != "material")
