"""The imports go one way, and modules stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"files", "config", "untrusted"}  # may be imported by any
ALLOWED = {
    "files": set(), "config": set(), "order": set(), "tiles": set(), "metrics": set(), "photo": set(),
    "untrusted": set(), "members": set(), "sample": {"members"}, "answers": set(), "weight_files": set(),
    "products": set(), "network": {"hub", "model", "unet"},  # the hub only inside methods, the others for their types
    "unet": {"network"}, "model": {"network", "products", "unet", "weight_files"},
    "degrade": {"photo"},
    "storage": {"answers"}, "cache": set(),
    "index": {"members", "sample"},
    "listing": {"sample", "storage"}, "rows": {"index", "sample", "storage"},
    "reader": {"cache", "index", "members", "rows", "sample", "storage"},
    "prefetch": {"reader", "signals"},
    "stream": {"order", "prefetch", "reader", "storage"},
    "resident": {"reader", "stream"},
    "feed": {"ranks", "reader", "resident", "stream"},
    "verify": {"index", "listing", "reader", "rows", "sample", "storage"},
    "optimize": {"network"},
    "checkpoint": {"model", "network", "weight_files"},
    "wandb_files": set(), "trackers": set(), "job": set(),
    "wandb_run": {"job", "trackers", "wandb_files"}, "mlflow_run": {"job", "trackers"},
    "tracking": {"job", "mlflow_run", "trackers", "wandb_run"},
    "sync": {"checkpoint", "job", "mlflow_run", "trackers", "tracking", "wandb_run"},
    "dashboard": {"tracking", "wandb_run"},
    "threads": set(),
    "strips": {"model", "products"},
    "metadata": {"photo"}, "deep": {"metadata"}, "jpeg_quality": set(), "chroma": set(),
    "apply": {"chroma", "model", "network", "products", "strips", "threads", "tiles"},
    "canvas": {"deep", "jpeg_quality", "metadata", "photo"},
    "fitting": {"model", "network"},
    "restore": {"apply", "canvas", "fitting", "jpeg_quality", "model", "network"},
    "upscale": {"apply", "canvas", "metadata", "network", "photo", "restore"},
    "targets": {"photo"},
    "photo_files": {"apply", "canvas", "fitting", "network", "photo", "restore", "threads", "upscale"},
    "photo_commands": {"apply", "canvas", "degrade", "demo", "fitting", "model", "photo", "photo_files", "report",
                       "restore", "targets", "upscale"},
    "weight_commands": {"cards", "degrade", "export", "model", "network", "score", "upscale"},
    "compare": {"apply", "canvas", "fitting", "jpeg_quality", "metrics", "model", "photo", "photo_files", "tiles"},
    "demo": {"compare", "fitting"},
    "onnx_graph": {"model", "network", "unet"}, "export": {"model", "network", "onnx_graph"},
    "hub": {"hub_card", "model", "network", "weight_files"}, "hub_card": {"model", "network", "report", "tracking"},
    "cards": {"degrade", "listing", "model", "network", "photo", "reader", "score", "storage"},
    "score": {"apply", "photo", "degrade", "metrics", "network", "products", "restore", "tiles"},
    "report": {"listing", "metrics", "model", "network", "photo", "reader", "restore", "sample", "tiles", "tracking"},
    "validate": {"feed", "metrics", "model", "network", "products", "ranks", "reader", "signals", "stream"},
    "compiled": {"metrics", "validate"}, "queued": set(),
    "run": {"checkpoint", "compiled", "meeting", "metrics", "model", "network", "optimize", "products", "queued",
            "ranks", "reader", "storage", "stream", "unet", "validate"},
    "ranks": {"signals"}, "meeting": {"ranks", "signals"},
    "signals": set(),
    "resume": {"checkpoint", "meter", "model", "optimize", "ranks", "reader", "run", "signals", "stream"},
    "skipped": {"queued", "ranks", "reader", "run"},
    "step": {"meter", "optimize", "queued", "ranks", "run", "signals", "stream"},
    "meter": {"metrics", "run"},
    "machine": {"meeting", "mlflow_run", "model", "wandb_run"},
    "splits": {"listing", "machine", "reader", "run", "sample", "storage", "verify"},
    "doctor": {"checkpoint", "machine", "model", "order", "reader", "resident", "resume", "run", "sample", "splits",
               "storage", "stream"},
    "benchmark": {"meter", "metrics", "model", "run", "step", "stream", "train", "unet"},
    "launch": {"ranks", "signals"},
    "train": {"feed", "meter", "queued", "ranks", "reader", "report", "resume", "run", "signals",
              "skipped", "step", "stream", "tracking", "validate", "wandb_run"},
}
SOURCES = sorted(path for folder in ("srcnn", "shards", "launch", "tests") for path in (ROOT / folder).glob("*.py"))


def imported(path):
    """Modules of ours that a file imports, as (package, module)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] in ("srcnn", "shards", "launch"):
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                yield from ((parts[0], name) for name in names)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent.name == "srcnn"], ids=lambda path: path.stem)
def test_imports_inside_srcnn_go_one_way(path):
    for package, name in imported(path):
        assert package == "srcnn", f"{path.name} imports {package}"
        if path.stem not in ("__main__", "__init__"):
            assert name in ALLOWED[path.stem] | BASE, f"{path.name} imports srcnn.{name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_modules_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


def test_no_launch_file_hides_a_package_it_imports():
    names = {path.stem for path in (ROOT / "launch").glob("*.py")}
    assert not names & {"wandb", "accelerate", "torch", "webdataset", "evaluate", "srcnn", "shards"}
