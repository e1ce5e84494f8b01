"""Folders of photos restored side by side: order, refusals, interruption; and the memory one large photo takes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import heed_ctrl_c
from PIL import Image
from small import draw_photo, write_photos

from srcnn.commands.output_paths import output_paths
from srcnn.models.weights import load_model
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore_files import RestoreFile, work_on_files
from srcnn.restoration.tiled_inference import RestoreOptions

ROOT = Path(__file__).resolve().parents[2]
PEAK = """
import resource, sys
import numpy
from pathlib import Path
from srcnn.models.srcnn import SRCNN
from srcnn.models.srcnn import ModelConfig
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore_files import RestoreFile
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
work = RestoreFile(JpegRestorer(SRCNN(ModelConfig(filters=(8, 4), residual=True))))
work(Path(sys.argv[1]), Path(sys.argv[3]))  # a small one: what the libraries take once
before = peak()
work(Path(sys.argv[2]), Path(sys.argv[3]))
print(peak() - before)
"""


@pytest.fixture(scope="module")
def network():
    return load_model("srcnn-915-q20")


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_photos_side_by_side_are_as_one_by_one_and_in_order(tmp_path, network, num_threads):
    photos = write_photos(tmp_path / "photos", 9)
    targets = output_paths(photos, tmp_path / "out").targets
    outcomes = list(work_on_files(targets, RestoreFile(JpegRestorer(network, RestoreOptions(exact=True)), 95)))
    assert [outcome.target for outcome in outcomes] == list(targets.values())
    for path, target in targets.items():
        RestoreFile(JpegRestorer(network, RestoreOptions(exact=True)), 95)(path, tmp_path / "one.png")
        assert np.array_equal(np.asarray(Image.open(target)), np.asarray(Image.open(tmp_path / "one.png")))


def test_a_bad_photo_is_told_in_its_place_and_the_others_go_on(tmp_path, network, num_threads):
    photos = write_photos(tmp_path / "photos", 6)
    (photos / "photo 2.png").write_bytes(b"no picture")
    whole = (photos / "photo 4.png").read_bytes()
    (photos / "photo 4.png").write_bytes(whole[: len(whole) // 2])
    outcomes = list(work_on_files(output_paths(photos, tmp_path / "out").targets, RestoreFile(JpegRestorer(network))))
    assert [number for number, outcome in enumerate(outcomes) if outcome.error] == [2, 4]
    assert "photo 2.png" in outcomes[2].error and "photo 4.png" in outcomes[4].error
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_large_photos_between_small_ones_keep_the_order_and_tell_their_progress(
    tmp_path, network, num_threads, monkeypatch
):
    monkeypatch.setattr("srcnn.restoration.restore_files.PARALLEL_MEGAPIXELS", 0.02)
    photos = write_photos(tmp_path / "photos", 5)
    Image.fromarray(draw_photo(0, 210, 300)).save(photos / "photo 2.png")
    calls = []
    targets = output_paths(photos, tmp_path / "out").targets
    outcomes = list(work_on_files(targets, RestoreFile(JpegRestorer(network)),
                                  on_progress=lambda path, *counts: calls.append((path, *counts))))
    assert [outcome.target for outcome in outcomes] == list(targets.values())
    large = [counts for path, *counts in calls if path.name == "photo 2.png"]
    assert [done for done, _ in large] == list(range(1, large[0][1] + 1))
    if num_threads > 1:
        assert {path.name for path, *_ in calls} == {"photo 2.png"}


def test_a_full_disk_ends_it(tmp_path, network, num_threads, monkeypatch):
    photos = write_photos(tmp_path / "photos", 8)
    written = []

    def full(path, *arguments):
        written.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("srcnn.restoration.restore_files.write_photo_file", full)
    with pytest.raises(OSError, match="No space"):
        list(work_on_files(output_paths(photos, tmp_path / "out").targets, RestoreFile(JpegRestorer(network))))
    assert len(written) < 8


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_photo_is_in_memory_once_as_pillow_holds_it(tmp_path, suffix):
    """RGB takes four bytes a pixel there; decoding, restoring and encoding add less than 100 MB."""
    height, width = 5000, 8000
    for name, size in (("small.jpg", (64, 300)), ("large.jpg", (height, width))):
        Image.fromarray(np.resize(draw_photo(0, 64, 800), (*size, 3))).save(tmp_path / name, quality=20)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *(tmp_path / name for name in ("small.jpg", "large.jpg", f"restored{suffix}"))],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * height * width + 100e6


@pytest.mark.slow
def test_ctrl_c_leaves_whole_photos_only(tmp_path):
    photos = write_photos(tmp_path / "photos", 1, 401, 603)
    for number in range(1, 150):
        shutil.copy(photos / "photo 0.png", photos / f"photo {number}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "srcnn", "restore", photos, "-o", tmp_path / "out"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}, preexec_fn=heed_ctrl_c,
    )
    assert process.stdout is not None
    assert "photo 0.png" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "srcnn restore:" in complaints and "Traceback" not in complaints
    written = list((tmp_path / "out").iterdir())
    assert 0 < len(written) < 150
    for path in written:
        with Image.open(path) as image:
            image.load()
