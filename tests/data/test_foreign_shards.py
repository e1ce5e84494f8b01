"""Shards that stock webdataset wrote, indexed once, give what webdataset and Pillow find in them."""

import collections
import io
import tarfile
import threading

import numpy as np
import pytest
from conftest import contents
from messages import facts
from PIL import Image
from servers import FaultyServer
from small import draw_photo, small_config

from shards.__main__ import main
from srcnn.data import dataset as dataset_module
from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import LoaderConfig, train_batches, val_batches
from srcnn.data.shuffle import BatchPlan, crops_at
from srcnn.runtime.distributed import DistributedError
from srcnn.training.trainer import train

webdataset = pytest.importorskip("webdataset")

SIZES = ((37, 53), (64, 129), (32, 32), (33, 101), (95, 40), (129, 32), (47, 47))  # rows, columns
NUM_PAIRS = 31
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
RUNS = LoaderConfig(order="runs", run_samples=4, window_samples=12, num_lanes=2, prefetch_batches=2)
ORDERS = [LoaderConfig(order="uniform", num_threads=3), RUNS]


def encoded(pixels, name):
    """The pixels as the end of the name says, by NumPy or Pillow."""
    buffer = io.BytesIO()
    kind = name.rpartition(".")[2].lower()
    if kind == "npy":
        np.save(buffer, pixels)
    else:
        Image.fromarray(pixels).save(buffer, FORMATS[kind])
    return buffer.getvalue()


def picture(seed, grey=False):
    """A picture of one of the sizes and itself, lighter and coarser."""
    pixels = draw_photo(seed, *SIZES[seed % len(SIZES)])
    pixels = pixels[..., 0].copy() if grey else pixels
    return pixels, (pixels // 9 * 9 + seed % 5).astype(np.uint8)


def samples(clean, degraded, key="{}", num_pairs=NUM_PAIRS):
    """Samples for webdataset's writer, every third one grey, with other members around and between the two."""
    for number in range(num_pairs):
        pixels = picture(number, grey=number % 3 == 0)
        pair = {name: encoded(half, name) for name, half in zip((clean, degraded), pixels, strict=True)}
        extra = {"about.json": {"number": number}, "cls": number, "hz.txt": "between", "txt": "z" * (number * 50)}
        yield {"__key__": key.format(number)} | pair | extra


def write(folder, written, a_shard=9):
    """Shards by webdataset's own ShardWriter."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/part-%05d.tar", maxcount=a_shard, verbose=0) as writer:
        for sample in written:
            writer.write(sample)
    return folder


def index(folder, *options, tile_pixels=32):
    return main(["index", str(folder), "--tile_pixels", str(tile_pixels), "--num_workers", "1", *map(str, options)])


def pictures_of(folder, clean, degraded, mode="L"):
    """Keys and pictures as webdataset finds them and Pillow or NumPy decodes them."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    pairs = []
    for sample in found:
        both = (io.BytesIO(sample[name.lower()]) for name in (clean, degraded))
        images = [Image.fromarray(np.load(file)) if name.lower().endswith("npy") else Image.open(file)
                  for name, file in zip((clean, degraded), both, strict=True)]
        pairs.append([np.asarray(image.convert(mode)) for image in images])
    return [sample["__key__"] for sample in found], pairs


def cut(picture, crop=(0.5, 0.5), side=32):
    """The tile as far down and right as the crop says: 0 at the border, 1 (never reached) at the other one."""
    top, left = (int(np.floor(part * (length - side + 1))) for part, length in zip(crop, picture.shape, strict=False))
    tile = picture[top : top + side, left : left + side]
    assert tile.shape[:2] == (side, side), "inside the picture"
    return tile


NAMES = [("clean.png", "degraded.png"), ("clean.png", "degraded.jpg"), ("clean.jpeg", "degraded.jpeg"),
         ("clean.webp", "degraded.webp"), ("clean.npy", "degraded.npy"), ("hq.png", "lq.jpg"), ("png", "jpg"),
         ("0.target.npy", "0.input.webp"), ("HQ.PNG", "LQ.Jpg")]
KEYS = ["{:06d}", "train/some folder/picture {}", "a.b/c{}_x-ü", "deep/" * 30 + "{}", "n" * 130 + "{}"]


@pytest.mark.parametrize(("clean", "degraded"), NAMES)
@pytest.mark.parametrize("color", ["luma", "rgb"])
def test_pairs_are_those_that_webdataset_and_pillow_find_cut_in_the_middle(tmp_path, clean, degraded, color):
    key = KEYS[len(clean + color) % len(KEYS)]
    folder = write(tmp_path / "set", samples(clean, degraded, key))
    names = [] if clean.startswith("clean") else ["--clean", clean, "--degraded", degraded]
    assert index(folder, *names, "--color", color) == 0
    keys, pairs = pictures_of(folder, clean, degraded, "L" if color == "luma" else "RGB")
    assert keys == [key.format(number) for number in range(NUM_PAIRS)]
    reader = ShardDataset(folder)
    assert reader.num_samples == NUM_PAIRS and len(reader.manifest.shards) == 4
    chosen = np.array([5, 30, 0, 1, 2, 8, 9, 10, 29, 5])
    for part, tiles in enumerate(reader.read(chosen)):
        assert np.array_equal(tiles, [cut(pairs[number][part]) for number in chosen])
    seen = []
    for rank in range(3):
        for batch in val_batches(reader, LoaderConfig(), 4, rank, 3):
            seen += batch.samples.tolist()
            assert np.array_equal(batch.clean, [cut(pairs[number][0]) for number in batch.samples])
    assert seen == list(range(NUM_PAIRS))


HEADERS = [(tarfile.USTAR_FORMAT, key) for key in KEYS[:3]]  # no room there for the long ones
HEADERS += [(tar_format, key) for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT) for key in KEYS]


@pytest.mark.parametrize(("tar_format", "key"), HEADERS)
def test_keys_and_headers_of_all_kinds_are_read(tmp_path, tar_format, key):
    written = list(samples("hq.png", "lq.npy", key, 5))
    with tarfile.open(tmp_path / "a.tar", "w", format=tar_format) as tar:
        deep = tarfile.TarInfo("deep.clean.png")
        deep.type = tarfile.DIRTYPE
        tar.addfile(deep)
        for sample in written:
            for name in ("lq.npy", "hq.png"):
                member = tarfile.TarInfo(f"{sample['__key__']}.{name}")
                member.size, member.mtime = len(sample[name]), 1.5 if tar_format == tarfile.PAX_FORMAT else 7
                tar.addfile(member, io.BytesIO(sample[name]))
        for name in ("__meta__/info.json", "README"):
            tar.addfile(tarfile.TarInfo(name))
    assert index(tmp_path, "--clean", "hq.png", "--degraded", "lq.npy") == 0
    expected = pictures_of(tmp_path, "hq.png", "lq.npy")[1]
    clean, degraded = ShardDataset(tmp_path).read(np.arange(5))
    assert np.array_equal(clean, [cut(pair[0]) for pair in expected])
    assert np.array_equal(degraded, [cut(pair[1]) for pair in expected])


def test_turned_members_are_upright(tmp_path):
    """Each on its own: the clean ones as they are, the degraded ones stored in all orientations."""
    flips, written = Image.Transpose, []
    turns = (flips.FLIP_LEFT_RIGHT, flips.ROTATE_180, flips.FLIP_TOP_BOTTOM, flips.TRANSPOSE, flips.ROTATE_90,
             flips.TRANSVERSE, flips.ROTATE_270)  # what makes an upright picture one of orientation 2 to 8
    for number in range(1, 9):
        pixels, tag, buffer = draw_photo(number, 40, 52), Image.Exif(), io.BytesIO()
        tag[0x0112] = number
        image = Image.fromarray(pixels)
        (image.transpose(turns[number - 2]) if number > 1 else image).save(buffer, "PNG", exif=tag)
        written.append({"__key__": str(number), "clean.png": encoded(pixels, "png"), "degraded.png": buffer.getvalue()})
    assert index(write(tmp_path, written)) == 0
    clean, degraded = ShardDataset(tmp_path).read(np.arange(8))
    assert np.array_equal(clean, degraded)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Both splits, indexed: pairs of PNG and JPEG, many sizes, grey and RGB."""
    folder = tmp_path_factory.mktemp("foreign")
    for split in ("train", "val"):
        write(folder / split, samples("hq.png", "lq.jpg", split + "/{}"))
        assert index(folder / split, "--clean", "hq.png", "--degraded", "lq.jpg") == 0
    return folder


@pytest.mark.parametrize("config", ORDERS, ids=lambda config: config.order)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_training_batches_hold_tiles_cut_where_the_position_says(foreign, config, num_ranks):
    pairs = pictures_of(foreign / "train", "hq.png", "lq.jpg")[1]
    reader = ShardDataset(foreign / "train")
    order = config.make_shuffle(11, reader)
    begin, stop, size = NUM_PAIRS, 4 * NUM_PAIRS, 6
    seen = collections.Counter()
    plans = [BatchPlan(11, begin, stop, size, rank, num_ranks) for rank in range(num_ranks)]
    ranks = [train_batches(reader, config, plan) for plan in plans]
    for start, batches in zip(range(begin, stop, size), zip(*ranks, strict=True), strict=True):
        positions = np.arange(start, start + size)
        crops = zip(order.samples_at(positions).tolist(), crops_at(11, positions).tolist(), strict=True)
        expected = collections.Counter(
            tuple(cut(picture, crop).tobytes() for picture in pairs[sample]) for sample, crop in crops
        )
        for batch in batches:
            seen.update(batch.samples.tolist())
            expected.subtract((clean.tobytes(), degraded.tobytes()) for clean, degraded in zip(*batch[:2], strict=True))
        assert not any(expected.values())
    assert seen.keys() == set(range(NUM_PAIRS)) and sum(seen.values()) == 16 * size
    assert set(seen.values()) == {3, 4}, "three epochs, and the tail of the last batch"


def test_cuts_reach_every_place_of_a_picture(tmp_path):
    ramp = np.add.outer(16 * np.arange(34), np.arange(36)).astype(np.uint8)  # the corner's value tells row and column
    write(tmp_path, [{"__key__": "0", "clean.png": encoded(ramp, "png"), "degraded.png": encoded(ramp, "png")}])
    assert index(tmp_path) == 0
    batches = train_batches(ShardDataset(tmp_path), ORDERS[0], BatchPlan(0, 0, 600, 60))
    corners = collections.Counter(corner for batch in batches for corner in batch.clean[:, 0, 0].tolist())
    assert set(corners) == {16 * row + column for row in range(3) for column in range(5)}
    assert min(corners.values()) > 20, "all about equally often: 40 times each"


def test_pictures_are_decoded_in_threads(foreign, monkeypatch):
    names, decode = set(), dataset_module.decode_picture

    def noting(*arguments):
        names.add(threading.current_thread().name)
        return decode(*arguments)

    monkeypatch.setattr(dataset_module, "decode_picture", noting)
    reader = ShardDataset(foreign / "train")
    for config in ORDERS:
        list(train_batches(reader, config, BatchPlan(0, 0, 8 * NUM_PAIRS, 4)))
    assert len(names) > 1 and threading.main_thread().name not in names


def test_a_web_server_gives_the_same_batches(foreign):
    pytest.importorskip("obstore")
    with FaultyServer(foreign) as server:
        server.fault = lambda path, start, stop, number: "flip" if number == 1 and path.endswith("tar") else None
        readers = [ShardDataset(f"{place}/train") for place in (foreign, server.url)]
        both = (train_batches(reader, RUNS, BatchPlan(3, 0, 90, 8)) for reader in readers)
        for local, remote in zip(*both, strict=True):
            assert all(np.array_equal(*arrays) for arrays in zip(local, remote, strict=True))


def test_a_network_is_trained_on_them_and_reported_on(tmp_path, foreign):
    values = train(small_config(tmp_path / "run", foreign))
    assert np.isfinite(values["val/psnr"])
    report = tmp_path / "run" / "report"
    assert {path.name for path in report.iterdir()} == {
        "card.md", "index.html", "loss.png", "psnr.png", "scores.json", "table.md", "tiles.png"}
    assert "photo.png" not in (report / "index.html").read_text()
    with pytest.raises(DistributedError, match=facts(foreign / "train", "--stream.resident no")):
        train(small_config(tmp_path / "resident", foreign, stream=LoaderConfig(resident="host")))


def test_indexing_again_gives_the_same_and_leaves_the_shards_alone(tmp_path):
    folder = write(tmp_path / "set", samples("hq.png", "lq.jpg"))
    shards = contents(folder)
    assert index(folder, "--clean", "hq.png", "--degraded", "lq.jpg") == 0
    first = contents(folder)
    assert index(folder, "--clean", "hq.png", "--degraded", "lq.jpg") == 0
    assert contents(folder) == first
    assert first.keys() - shards.keys() == {"index.npy", "manifest.json"} and shards.items() <= first.items()
    assert index(folder, "--clean", "hq.png", "--degraded", "lq.jpg", tile_pixels=33) == 1, "too large for some"
    assert contents(folder) == first


def test_several_workers_give_the_same(tmp_path):
    folder = write(tmp_path / "set", samples("clean.png", "degraded.png"))
    assert index(folder) == 0
    first = contents(folder)
    assert main(["index", str(folder), "--tile_pixels", "32", "--num_workers", "2"]) == 0
    assert contents(folder) == first
