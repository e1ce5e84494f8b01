"""Photos read from and shards written to a real S3 API server (moto), beside the same in folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import SMALL, PhotosFolder, contents, make, run_shards
from messages import lines_with, says
from servers import s3

from shards.write import list_photos, list_sources, open_source
from srcnn.data.dataset import ShardDataset

obstore = pytest.importorskip("obstore")


class Bucket(NamedTuple):
    """Its address and what speaks to it."""

    url: str
    store: Any


@pytest.fixture
def bucket(tmp_path: Path, photos_folder: PhotosFolder) -> Iterator[Bucket]:
    """Seven photos below photos/, one of them in a folder, a file that is none and a hidden one."""
    photos = photos_folder(6, "local/photos")
    photos_folder(1, "local/photos/more", first_seed=6)
    (photos / "list.txt").write_text("no photo")
    (photos / ".hidden.png").write_text("no photo either")
    open_source.cache_clear()  # of the server of another test
    name = f"city-{tmp_path.name.replace('_', '-').lower()}"[:50].rstrip("-")  # moto's buckets outlive its server
    with s3(tmp_path / "local", name):
        yield Bucket(f"s3://{name}", obstore.store.from_url(f"s3://{name}"))


def below(store: Any, prefix: str) -> dict[str, bytes]:
    paths = [item["path"] for item in obstore.list(store, f"{prefix}/").collect()]
    return {path.removeprefix(f"{prefix}/"): bytes(obstore.get(store, path).bytes()) for path in paths}


def test_a_bucket_gets_the_bytes_that_a_folder_gets(bucket: Bucket, tmp_path: Path, capsys: Any) -> None:
    assert make("--photos", tmp_path / "local/photos", "--out", tmp_path / "out") == 0
    expected = capsys.readouterr().out
    remote = ("--photos", f"{bucket.url}/photos", "--out", f"{bucket.url}/out")
    assert make(*remote) == 0
    assert capsys.readouterr().out == expected.replace(str(tmp_path / "out"), f"{bucket.url}/out")
    assert below(bucket.store, "out").keys() == contents(tmp_path / "out").keys()
    for name, content in below(bucket.store, "out").items():
        assert content == (tmp_path / "out" / name).read_bytes(), name
    assert make(*remote) == 0
    assert f"{bucket.url}/out" in capsys.readouterr().out
    ours, theirs = ShardDataset(tmp_path / "out/train"), ShardDataset(f"{bucket.url}/out/train")
    samples = np.arange(ours.num_samples)
    for mine, its in zip(ours.read(samples), theirs.read(samples), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.slow
def test_folders_and_buckets_mix_over_worker_processes(bucket: Bucket, tmp_path: Path) -> None:
    assert make("--photos", tmp_path / "local/photos", "--out", tmp_path / "out") == 0
    for photos, out in ((f"{bucket.url}/photos", tmp_path / "mixed"), (tmp_path / "local/photos", f"{bucket.url}/m")):
        done = run_shards(*SMALL, "--num_workers", 2, "--photos", photos, "--out", out)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "mixed") == contents(tmp_path / "out")
    for name, content in below(bucket.store, "m").items():
        assert content == (tmp_path / "out" / name).read_bytes(), name


def test_what_is_missing_in_a_bucket_is_made_again_and_the_rest_is_kept(bucket: Bucket, tmp_path: Path) -> None:
    remote = ("--photos", f"{bucket.url}/photos", "--out", f"{bucket.url}/out")
    assert make(*remote) == 0
    whole = below(bucket.store, "out")
    times = {item["path"]: item["last_modified"] for item in obstore.list(bucket.store, "out/").collect()}
    obstore.delete(bucket.store, ["out/train/000001.tar", "out/train/index.npy", "out/val/manifest.json"])
    assert make(*remote) == 0
    assert below(bucket.store, "out") == whole
    now = {item["path"]: item["last_modified"] for item in obstore.list(bucket.store, "out/").collect()}
    assert now["out/train/000000.tar"] == times["out/train/000000.tar"]


def test_another_config_or_a_bucket_with_other_things_is_refused(bucket: Bucket, capsys: Any) -> None:
    again = ("--photos", f"{bucket.url}/photos", "--out", f"{bucket.url}/photos/out")  # what is made is no photo
    assert make(*again) == make(*again) == 0
    capsys.readouterr()
    assert make(*again, "--degradation.jpeg_quality", 30) == 1
    assert says(capsys.readouterr().err, f"{bucket.url}/photos/out", "jpeg_quality", 20, 30)
    assert make("--photos", f"{bucket.url}/photos/more", "--out", f"{bucket.url}/photos") == 1
    assert says(capsys.readouterr().err, f"{bucket.url}/photos/more", f"{bucket.url}/photos")
    assert make("--photos", f"{bucket.url}/nothing", "--out", f"{bucket.url}/o") == 1
    assert f"{bucket.url}/nothing" in capsys.readouterr().err
    obstore.put(bucket.store, "other/file", b"x")
    assert make("--photos", f"{bucket.url}/photos", "--out", f"{bucket.url}/other") == 1
    assert f"{bucket.url}/other" in capsys.readouterr().err


def test_a_photo_that_cannot_be_read_is_refused_by_its_name_in_the_bucket(bucket: Bucket, capsys: Any) -> None:
    obstore.put(bucket.store, "photos/cut.jpg", b"\xff\xd8\xff\xe0")
    assert make("--photos", f"{bucket.url}/photos", "--out", f"{bucket.url}/out") == 1
    (told,) = lines_with(capsys.readouterr().err, "cut.jpg")
    assert "/tmp" not in told


def test_addresses_that_cannot_be_written_are_refused(capsys: Any, tmp_path: Path, photos_folder: PhotosFolder) -> None:
    for out in ("https://host/out", "ftp://host/out"):
        assert make("--photos", photos_folder(3), "--out", out) == 1
        assert says(capsys.readouterr().err, out.partition(":")[0], "s3", "gs", "az")


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_validation_folder_below_the_photos_is_no_part_of_these(kind: str, bucket: Bucket, tmp_path: Path) -> None:
    from shards.plan import ShardsConfig

    root = f"{bucket.url}/photos" if kind == "bucket" else str(tmp_path / "local/photos")
    sources, ignored = list_sources(ShardsConfig(photos=root, val=f"{root}/more", out=str(tmp_path / "out")))
    assert [(source.split, source.name) for source in sources] == [
        *(("train", f"photo-{number:03d}.png") for number in range(6)), ("val", "photo-006.png")]
    assert ignored == 1 and list_photos(root, ())[1] == ["list.txt"]
