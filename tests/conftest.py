"""What several test files need: synthetic photos, the real ones where there are any, the shard maker."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import settings
from PIL import Image

from shards.__main__ import main
from srcnn.data.manifest import PhotoRecord, RefusedRecord, read_manifest
from srcnn.data.photo_list import read_photo_records, read_refused
from srcnn.runtime.storage import Folder, open_storage

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
PhotosFolder = Callable[..., Path]
FAILED = pytest.StashKey[bool]()
BEGUN = time.monotonic()
LIMIT = "SRCNN_TEST_MINUTES"  # in the environment: tests that are not begun by then are skipped, and named at the end
NOT_REACHED = f"not reached within {LIMIT}"
settings.register_profile("short", max_examples=30, deadline=None)
settings.register_profile("long", max_examples=300, deadline=None)
settings.load_profile("short")
TEST = "SRCNN_TEST"  # in the environment of all that a test starts
# One photo of 203x149 gives six tiles of 64, and is a shard of its own.
SMALL = ("--resize", "none", "--tile_pixels", 64, "--samples_per_shard", 6, "--num_workers", 1)


def photo_pixels(seed: int, width: int = 203, height: int = 149) -> np.ndarray:
    """(H, W, 3) uint8: slopes, edges, stripes and some noise, another photo for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    slope = 90 * x / width * rng.uniform(0.2, 1, 3)[:, None, None] + 60 * y / height
    stripes = 40 * np.sign(np.sin(x / rng.uniform(3, 9)) + np.cos(y / rng.uniform(4, 11)))
    bands = slope + stripes + 50 + rng.normal(0, 3, (3, height, width))
    return np.moveaxis(bands, 0, -1).clip(0, 255).round().astype(np.uint8)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = float(os.environ.get(LIMIT, 0))
    if minutes and time.monotonic() - BEGUN > 60 * minutes:
        pytest.skip(NOT_REACHED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    missed = [report.nodeid for report in skipped if NOT_REACHED in str(report.longrepr)]
    if missed:
        terminalreporter.section(f"{len(missed)} tests {NOT_REACHED}={os.environ[LIMIT]}")
        terminalreporter.write_line("\n".join(missed))


@pytest.fixture(autouse=True)
def nothing_is_left_to_the_next_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """No variable that libraries set for their processes; and of a failed test no training, for which nobody waits."""
    before = dict(os.environ)
    os.environ[TEST] = mark = f"{os.getpid()} {request.node.nodeid}"
    yield
    os.environ.clear()
    os.environ.update(before)
    if jobs := sys.modules.get("jobs"):
        jobs.end_all()
    if request.node.stash.get(FAILED, False):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(TEST) == mark:
                    process.kill()


@pytest.fixture
def photos_folder(tmp_path: Path) -> Callable[..., Path]:
    """photos_folder(num, name, first_seed, width, height): a folder of PNG photos in tmp_path."""

    def make(
        num_photos: int, name: str = "photos", first_seed: int = 0, width: int = 203, height: int = 149
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(first_seed, first_seed + num_photos):
            pixels = photo_pixels(seed, width, height)
            Image.fromarray(pixels).save(folder / f"photo-{seed:03d}.png", compress_level=1)
        return folder

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real photographs: {SHARED_DATA} is not there")
    return SHARED_DATA


def shards_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shards", *map(str, arguments)]


def run_shards(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m shards ...` as a process of its own."""
    return subprocess.run(
        shards_command(*arguments),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        env=quiet_env(),
    )


def quiet_env() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def make(*arguments: object) -> int:
    """The exit status of the shard maker, run here."""
    return main([*map(str, (*SMALL, *arguments))])


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by name."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def traces(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file below a folder: another one if it was written again."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def photos_of(*folders: Path) -> list[PhotoRecord]:
    """The photos that these splits list."""
    return [photo for each in map(open_storage, folders) for photo in read_photo_records(each, read_manifest(each))]


def refused_of(*folders: Path) -> list[RefusedRecord]:
    """Those that they list as refused."""
    return [item for each in map(open_storage, folders) for item in read_refused(each, read_manifest(each))]


def pairs_of(out: Path, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every pair of a split by its key, as stock webdataset reads it."""
    webdataset = pytest.importorskip("webdataset")
    urls = [str(out / split / shard.name) for shard in read_manifest(Folder(out / split)).shards]
    stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return {item["__key__"]: (item["clean.npy"], item["degraded.npy"]) for item in stream}


def heed_ctrl_c() -> None:
    """Where the tests run in the background of a script, Ctrl-C is ignored, and so it would be in what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
