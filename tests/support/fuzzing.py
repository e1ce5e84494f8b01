"""What reads foreign bytes, with seeds, for the fuzzers: `make fuzz`, guided by coverage, and the short test_fuzz.py.

    python tests/support/fuzzing.py --seconds 60 [--target NAME]

Every input is to give a result or one of the target's errors: no other error, no crash, no hang, no memory beyond the
bound. Inputs that are worth keeping gather in .fuzz/TARGET; what fails is written to .fuzz/TARGET-failures.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]

from mutations import mend_png, mend_tar, mutated, unzipped, zipped  # noqa: E402
from seeds import arrays, configs, pictures, refit, run_settings, shard_files, training_state, weights  # noqa: E402

MAX_RSS_MB = 2048
HANG_SECONDS = 60
MAX_INPUT_BYTES = 16_384


class Target(NamedTuple):
    """A reader of foreign bytes, which it gets with a folder to write in; the errors it may raise; where to begin."""

    read: Callable[[bytes, Path], object]
    errors: tuple[type[BaseException], ...]
    seeds: Callable[[], list[bytes]]


def open_split(folder: Path, files: dict[str, bytes]) -> None:
    """Reads all pairs of a split whose manifest names its files' own sizes and hashes, as a stranger's would."""
    import numpy as np

    from srcnn.data.dataset import ShardDataset

    manifest = json.loads(files["manifest.json"])
    refit(manifest, files)
    for name, content in (files | {"manifest.json": json.dumps(manifest).encode()}).items():
        (folder / name).write_bytes(content)
    reader = ShardDataset(folder)
    reader.fetch(0, 5)
    reader.read(np.arange(5))
    reader.close()


def read_manifest(data: bytes, folder: Path) -> None:
    from srcnn.data.manifest import Manifest, read_manifest
    from srcnn.runtime.storage import Folder

    Manifest.parse(data, "manifest.json")
    (folder / "manifest.json").write_bytes(data)
    read_manifest(Folder(folder))


def read_index(data: bytes, folder: Path) -> None:
    open_split(folder, shard_files("png") | {"index.npy": data})


def read_npy_shard(data: bytes, folder: Path) -> None:
    files = shard_files("npy")
    size = len(files["000000.tar"])
    open_split(folder, files | {"000000.tar": data[:size].ljust(size, b"\0"), "index.npy": _index_of(data, size)})


def _index_of(data: bytes, size: int) -> bytes:
    """The index of the npy shard with the hashes of these bytes."""
    import numpy as np

    from srcnn.data.index import encode_index, hash_bytes

    rows = np.load(io.BytesIO(shard_files("npy")["index.npy"]))
    content = data[:size].ljust(size, b"\0")
    rows["hash"] = [hash_bytes(content[start : start + length]) for start, length, *_ in rows.tolist()]
    return encode_index(rows)


def read_foreign_tar(data: bytes, folder: Path) -> None:
    from shards.index_foreign import guess_members, index_shard

    path = folder / "a.tar"
    path.write_bytes(mend_tar(data))
    members = guess_members([path], "clean.png", "degraded.png")
    index_shard(path, members, (16, 16))


def read_member(data: bytes, folder: Path) -> None:
    from srcnn.data.manifest import decode_picture, decode_tile

    for read in (lambda: decode_picture(mend_png(data), 3), lambda: decode_tile(data, "npy", (16, 16)),
                 lambda: decode_tile(mend_png(data), "png", (16, 16))):
        with contextlib.suppress(ValueError, OSError):
            read()


def read_and_write_photo(data: bytes, folder: Path) -> None:
    """As `srcnn restore` and `make shards` read it; and written in every format, with its metadata."""
    from srcnn.photos.photo_file import read_photo_file, write_photo_file
    from srcnn.photos.reading import PhotoRefused, open_image, read_photo, upright_size

    path = folder / "photo.png"
    path.write_bytes(mend_png(data))
    with contextlib.suppress(PhotoRefused), open_image(path, 1.0) as image:
        upright_size(image)
    read_photo(path, 1.0)
    canvas = read_photo_file(path)
    for suffix in (".jpg", ".png", ".webp", ".tif", ".bmp"):
        with contextlib.suppress(ValueError):
            try:
                write_photo_file(folder / f"out{suffix}", canvas)
            except OSError as error:
                if error.errno is not None:
                    raise


def read_config(data: bytes, folder: Path) -> None:
    from shards.plan import ShardsConfig
    from srcnn.runtime.settings import parse
    from srcnn.runtime.strict_yaml import read_yaml
    from srcnn.training.config import TrainConfig

    (folder / "config.yaml").write_bytes(data)
    read_yaml(folder / "config.yaml")
    for kind in (TrainConfig, ShardsConfig):
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
            parse(kind, "fuzzed", "", ["--config", str(folder / "config.yaml")])


def read_safetensors(data: bytes, folder: Path) -> None:
    from srcnn.models.weights import load_model

    (folder / "model.safetensors").write_bytes(data)
    load_model(folder / "model.safetensors")


def read_pth(data: bytes, folder: Path) -> None:
    """Whole files, and pickles in an otherwise whole file."""
    from srcnn.models.weights import load_model

    parts = unzipped(weights(".pth"))
    packed = data if data[:2] == b"PK" else zipped(parts | {name: data for name in parts if name.endswith("data.pkl")})
    (folder / "model.pth").write_bytes(packed)
    load_model(folder / "model.pth")


def read_checkpoint(data: bytes, folder: Path) -> None:
    """As a run that continues: files.json is right, the training state is not."""
    from srcnn.models.srcnn import SRCNN, ModelConfig
    from srcnn.training import checkpoint
    from srcnn.training.resume import resume

    parts = unzipped(training_state())
    packed = data if data[:2] == b"PK" else zipped(parts | {name: data for name in parts if name.endswith("data.pkl")})
    step = folder / "checkpoints" / "step-00000001"
    step.mkdir(parents=True, exist_ok=True)
    files = {checkpoint.MODEL: weights(".safetensors"), checkpoint.TRAINING: packed}
    listed = {name: {"bytes": len(it), "sha256": hashlib.sha256(it).hexdigest()} for name, it in files.items()}
    for name, content in (files | {checkpoint.FILES: json.dumps(listed).encode()}).items():
        (step / name).write_bytes(content)
    found = checkpoint.latest(folder)
    assert found == step
    with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError):
        resume.load_weights(SRCNN(ModelConfig(filters=(2, 2))), checkpoint.load_training(found)["network"])


def read_metrics_of_a_run(data: bytes, folder: Path) -> None:
    """As a report reads them, and as a training that goes on: then no line is left that a report cannot show."""
    from srcnn.tracking.history import History, merge_by_step, read_metrics, results_table
    from srcnn.training.report import draw_curves, html_page
    from srcnn.training.report_charts import CHARTS, draw_chart

    (folder / "metrics.jsonl").write_bytes(data)
    with contextlib.suppress(ValueError):
        read_metrics(folder)
    assert History(folder, 1000).points() == (points := read_metrics(folder)) or "NaN" in str(data)
    merge_by_step(points)
    page = html_page(data[:20].decode(errors="replace"), results_table(points), folder)
    assert page.count("<") < 100 + 20 * len(points)
    assert all(draw_chart(chart, points).count("<") < 200 + 4 * len(points) for chart in CHARTS)
    if zlib.crc32(data) % 16 == 0:  # drawing takes longer than all the rest
        draw_curves(points, folder)


def read_starts_of_a_run(data: bytes, folder: Path) -> None:
    from srcnn.tracking.cluster_job import record_start
    from srcnn.training.report import duration, start_rows

    (folder / "jobs.jsonl").write_bytes(data)
    history = record_start(folder, 3)
    assert history.lines[-1]["samples"] == 3 and len(history.settings()) == len(history.lines)
    duration(history)
    start_rows(history)
    assert len(history.group) <= 128 and all(len(tag) <= 64 for tag in history.tags)


def read_job_of_a_run(data: bytes, folder: Path) -> None:
    from srcnn.training.resume import is_same_job

    (folder / ".job").write_bytes(data)
    with mock.patch.dict(os.environ, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}):
        is_same_job(folder, ["a:1"])


def read_settings_of_a_run(data: bytes, folder: Path) -> None:
    """As report, sync and model cards read them."""
    from srcnn.runtime.strict_yaml import read_yaml
    from srcnn.tracking.tracker import hyperparameters
    from srcnn.training.report import training_card

    (folder / "config.yaml").write_bytes(data)
    settings = read_yaml(folder / "config.yaml")
    hyperparameters(settings)
    card = training_card(settings, [{"samples": 9, "val/psnr": 30.0}])
    assert "<" not in card and "](" not in card


def read_list_of_a_checkpoint(data: bytes, folder: Path) -> None:
    from srcnn.training import checkpoint

    (folder / checkpoint.MODEL).write_bytes(b"1")
    (folder / checkpoint.TRAINING).write_bytes(b"22")
    (folder / checkpoint.FILES).write_bytes(data)
    assert data == checkpoint_list() or checkpoint.find_corruption(folder) or json.loads(data)


def checkpoint_list() -> bytes:
    content = {"model.safetensors": b"1", "training.pt": b"22"}
    return json.dumps({name: {"bytes": len(it), "sha256": hashlib.sha256(it).hexdigest()}
                       for name, it in content.items()}).encode()


def read_photo_list(data: bytes, folder: Path) -> None:
    """A list whose length and hash are those in the manifest, as a stranger's would be."""
    from srcnn.data.manifest import read_manifest
    from srcnn.data.photo_list import read_jpeg_qualities, read_photo_list
    from srcnn.runtime.storage import Folder

    files = shard_files("png") | {"photos.jsonl": data}
    manifest = json.loads(files["manifest.json"])
    refit(manifest, files)
    (folder / "photos.jsonl").write_bytes(data)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    storage = Folder(folder)
    checked = read_manifest(storage)
    for entry in read_photo_list(storage, checked):
        assert not entry.name.startswith("/") and ".." not in entry.name.split("/")
    read_jpeg_qualities(storage, checked)


def read_model_card(data: bytes, folder: Path) -> None:
    from srcnn.restoration.model_cards import card_scores

    (folder / "weights.json").write_bytes(data)
    card_scores("weights", folder)


def read_plan(data: bytes, folder: Path) -> None:
    from shards.output import check_versions, reserve_output
    from shards.plan import ShardsConfig
    from srcnn.runtime.storage import Folder

    (folder / "plan.json").write_bytes(data)
    reserve_output(Folder(folder), ShardsConfig(photos="photos"), [])
    check_versions(Folder(folder))


def plan_of_shards() -> bytes:
    from shards.output import reserve_output
    from shards.plan import ShardsConfig
    from srcnn.runtime.storage import Folder

    with tempfile.TemporaryDirectory() as folder:
        reserve_output(Folder(Path(folder)), ShardsConfig(photos="photos"), [])
        return Path(folder, "plan.json").read_bytes()


def starts_of_a_run() -> bytes:
    from srcnn.tracking.cluster_job import Job, record_start

    with tempfile.TemporaryDirectory() as folder:
        for samples in (0, 64):
            record_start(Path(folder), samples, ["a", "b"], Job("group", ("slurm", "x"), {"job": "slurm 7"}))
        return Path(folder, "jobs.jsonl").read_bytes()


def targets() -> dict[str, Target]:
    """By name."""
    from shards.output import ShardsFailed
    from srcnn.data.manifest import ShardError
    from srcnn.models.weight_files import DEFAULT_MODEL, WEIGHTS
    from srcnn.photos.reading import PhotoRefused
    from srcnn.runtime.object_store import ReadFailed

    validation = b'"val/psnr": 30.1, "val/psnr_in": 29.0, "val/gain": 1.1, "val/gain_percent": 3, "val/ssim_in": 0.8'
    points = b'{"samples": 9, "train/loss": 0.1}\n{"samples": 9, ' + validation + b', "val/ssim": 0.9}\n'
    refused, shard = (ValueError,), (ShardError, ReadFailed)
    return {
        "manifest": Target(read_manifest, shard, lambda: [shard_files(it)["manifest.json"] for it in ("npy", "png")]),
        "index": Target(read_index, shard, lambda: [shard_files("png")["index.npy"]]),
        "npy-shard": Target(read_npy_shard, shard, lambda: [shard_files("npy")["000000.tar"]]),
        "foreign-tar": Target(read_foreign_tar, shard, lambda: [shard_files("png")["000000.tar"][:8192], b"\0" * 1024]),
        "member": Target(read_member, (), lambda: pictures() + arrays()),
        "photo": Target(read_and_write_photo, (PhotoRefused,), pictures),
        "config": Target(read_config, refused, configs),
        "safetensors": Target(read_safetensors, refused, lambda: [weights(".safetensors")]),
        "pth": Target(read_pth, refused, lambda: [weights(".pth"), pickle_of(weights(".pth"))]),
        "checkpoint": Target(read_checkpoint, (ValueError,), lambda: [
            training_state(), pickle_of(training_state())]),
        "metrics": Target(read_metrics_of_a_run, (), lambda: [points]),
        "starts": Target(read_starts_of_a_run, (), lambda: [starts_of_a_run()]),
        "job": Target(read_job_of_a_run, (), lambda: [b'{"id": "7", "requeues": "0", "launchers": ["a:1"]}']),
        "run-settings": Target(read_settings_of_a_run, refused, lambda: [run_settings(), *configs()]),
        "checkpoint-list": Target(read_list_of_a_checkpoint, (), lambda: [checkpoint_list()]),
        "photo-list": Target(read_photo_list, shard, lambda: [shard_files("png")["photos.jsonl"]]),
        "card": Target(read_model_card, refused, lambda: [(WEIGHTS / f"{DEFAULT_MODEL}.json").read_bytes()]),
        "plan": Target(read_plan, (ShardsFailed,), lambda: [plan_of_shards()]),
    }


def pickle_of(content: bytes) -> bytes:
    return next(part for name, part in unzipped(content).items() if name.endswith("data.pkl"))


def run_one(target: Target, data: bytes, folder: Path) -> None:
    """Raises whatever the target may not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(*target.errors):
            target.read(data, folder)


def fuzz(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["srcnn", "shards", "PIL", "tarfile", "zipfile"]):
        target = targets()[name]
        seeds = target.seeds()
        folder = Path(tempfile.mkdtemp(prefix="srcnn-fuzz-"))
        for seed in seeds:
            run_one(target, seed, folder)  # so that everything is imported
    corpus = ROOT / ".fuzz" / name
    failures = ROOT / ".fuzz" / f"{name}-failures"
    for path in (corpus, failures):
        path.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        return mutated(data, Random(seed), seeds)[:max_bytes] if seed % 2 else atheris.Mutate(data, max_bytes)

    options = {"max_total_time": seconds, "timeout": HANG_SECONDS, "rss_limit_mb": MAX_RSS_MB, "print_final_stats": 1,
               "max_len": max(MAX_INPUT_BYTES, *map(len, seeds)), "artifact_prefix": f"{failures}/", "verbosity": 1}
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)],
                  lambda data: run_one(target, data, folder), custom_mutator=mutate)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", default="", help="only this one")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if find_spec("atheris") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        print("no atheris here: pip install 'srcnn[fuzz]'; PyPI has it for Linux on x86-64 with Python 3.10 to 3.14, "
              f"this is {sys.platform} with {version}", file=sys.stderr)
        return 1
    if options.inside:
        fuzz(options.target, options.seconds)
    failed = []
    for name in [options.target] if options.target else targets():
        command = [sys.executable, __file__, "--inside", "--target", name, "--seconds", str(options.seconds)]
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}; the inputs are in .fuzz/" if failed else "every input was read or refused")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
