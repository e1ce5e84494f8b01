"""Valid files of every kind that is read, for the fuzzers to change."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def shard_files(encoding: str) -> dict[str, bytes]:
    """The files of a split of five pairs of 16x16 tiles."""
    import numpy as np

    from shards.tar import write_tar
    from srcnn.data.index import INDEX, encode_index, index_file
    from srcnn.data.manifest import MEMBERS, Manifest, PhotoRecord, PhotosFile, RefusedRecord, npy_stride
    from srcnn.data.photo_list import PHOTOS, encode_line
    from srcnn.runtime.storage import Folder

    tiles = np.random.default_rng(0).integers(0, 256, (5, 2, 16, 16), np.uint8) // 32
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "000000.tar").open("w+b") as file:
            shard, rows = write_tar(file, "000000.tar", enumerate(map(tuple, tiles)), encoding)
        (folder / INDEX).write_bytes(encode_index(rows))
        photo = PhotoRecord("sub/a.png", "00", 80, 16, 20, "000000.tar", 0, 5, 30.5)
        listing = encode_line(photo) + encode_line(RefusedRecord("b.png", "why", "train"))
        (folder / PHOTOS).write_bytes(listing)
        photos = PhotosFile(PHOTOS, len(listing), hashlib.sha256(listing).hexdigest(), 1, 1)
        stride = npy_stride((16, 16)) if encoding == "npy" else None
        Manifest("train", (16, 16), encoding, MEMBERS[encoding], stride, {"resize": "none"}, index_file(5),
                 (shard,), photos, 30.5, {"pillow": "13"}).write(Folder(folder))
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def refit(manifest: dict, files: dict[str, bytes]) -> None:
    """Makes sizes and hashes in a split's manifest those of its files, as a stranger would."""
    from srcnn.data.index import INDEX_DTYPE

    for entry in manifest["shards"]:
        if entry["name"] in files:
            content = files[entry["name"]]
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    num_samples = sum(entry["num_samples"] for entry in manifest["shards"])
    index = files["index.npy"]
    manifest["index"]["bytes"] = len(index)
    rows, place = index[len(index) - num_samples * INDEX_DTYPE.itemsize :], 0
    for entry in manifest["shards"]:
        end = place + entry["num_samples"] * INDEX_DTYPE.itemsize
        entry["index_sha256"], place = hashlib.sha256(rows[place:end]).hexdigest(), end
    listing = files.get("photos.jsonl", b"")
    manifest["photos"] |= {"bytes": len(listing), "sha256": hashlib.sha256(listing).hexdigest()}


def edit_manifest(folder, change):
    """Changes a manifest as a stranger would; hashes fit the files again, but where the change is."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    if (folder / "index.npy").is_file():
        refit(content, {name: (folder / name).read_bytes() for name in ("index.npy", "photos.jsonl")})
    change(content)
    path.write_text(json.dumps(content))


def edit_split(folder, change_shards=lambda it: None, change_photos=lambda it: None):
    """Changes the shards in a manifest and the list of photos; their hashes fit again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change_shards(manifest["shards"])
    listing, names = folder / "photos.jsonl", ["index.npy"]
    if listing.is_file():
        photos = [json.loads(line) for line in listing.read_text().splitlines()]
        change_photos(photos)
        listing.write_text("".join(json.dumps(photo) + "\n" for photo in photos))
        names.append(listing.name)
    else:
        manifest["photos"] = {}  # of shards made elsewhere nothing is listed
    refit(manifest, {name: (folder / name).read_bytes() for name in names})
    manifest["photos"] = manifest["photos"] if len(names) > 1 else None
    (folder / "manifest.json").write_text(json.dumps(manifest))


@cache
def weights(suffix: str) -> bytes:
    """A small network's."""
    from srcnn.models.srcnn import SRCNN, ModelConfig
    from srcnn.models.weights import save_model, save_state_dict

    model = SRCNN(ModelConfig(filters=(2, 2)))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"model{suffix}")
        save_model(model, path) if suffix == ".safetensors" else save_state_dict(model, path)
        return path.read_bytes()


@cache
def training_state() -> bytes:
    """As a checkpoint holds it, in the main."""
    import torch

    from srcnn.models.srcnn import SRCNN, ModelConfig

    network, buffer = SRCNN(ModelConfig(filters=(2, 2))), io.BytesIO()
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 1, 9, 9)}}
    torch.save({"format": 2, "step": 3, "samples": 24, "values": {"val/psnr": 30.0}, "stream": {"seed": 0},
                "network": network.state_dict(), "average": None, "optimizer": {"state": moments}}, buffer)
    return buffer.getvalue()


@cache
def pictures() -> list[bytes]:
    """A small picture in every format that is read, and some that are not, with all the metadata there is."""
    from PIL import Image

    colour = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0131] = 6, "a description", "a program"
    found = new_formats(colour)
    for image in (colour, colour.convert("L"), colour.convert("RGBA"), colour.convert("P"), colour.convert("1"),
                  colour.convert("CMYK"), colour.convert("L").convert("I;16")):
        for name, options in (("PNG", {}), ("JPEG", {"progressive": True}), ("JPEG", {}), ("WEBP", {}), ("BMP", {}),
                              ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {}), ("GIF", {})):
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):
                image.save(buffer, name, exif=exif, dpi=(72, 72), icc_profile=b"\0" * 200, **options)
                found.append(buffer.getvalue())
    return found


def new_formats(colour) -> list[bytes]:
    """AVIF, JPEG 2000 and JPEG XL of 8 and 16 bits, JPEG and PNG without an end, a TIFF of two pages."""
    import imagecodecs
    import numpy as np
    import tifffile

    pixels, found = np.asarray(colour), []
    deep = pixels.astype(np.uint16) * 257
    with contextlib.suppress(KeyError, OSError):  # where Pillow lacks them
        for name, options in (("JPEG2000", {}), ("JPEG2000", {"no_jp2": True}), ("AVIF", {"xmp": b"<x/>"})):
            buffer = io.BytesIO()
            colour.save(buffer, name, **options)
            found.append(buffer.getvalue())
    for name, options in (("JPEG", {"progressive": True}), ("PNG", {})):
        buffer = io.BytesIO()
        colour.save(buffer, name, **options)
        found += [buffer.getvalue()[:-12], buffer.getvalue()[:-2]]
    found += [imagecodecs.jpegxl_encode(pixels, usecontainer=True), imagecodecs.jpegxl_encode(deep, lossless=True),
              imagecodecs.jpeg2k_encode(deep, level=0, bitspersample=16)]
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages) as writer:
        writer.write(deep, photometric="rgb")
        writer.write(pixels[::2, ::2], photometric="rgb", subfiletype=1)
    return [*found, pages.getvalue()]


def arrays() -> list[bytes]:
    import numpy as np

    buffers = [io.BytesIO() for _ in range(3)]
    for buffer, array in zip(buffers, (np.zeros((16, 16), np.uint8), np.zeros((9, 9, 3), np.uint8), np.ones(3)),
                             strict=True):
        np.save(buffer, array)
    return [buffer.getvalue() for buffer in buffers]


def run_settings() -> bytes:
    """config.yaml of a run."""
    from srcnn.runtime.settings import to_yaml
    from srcnn.training.config import TrainConfig

    return to_yaml(TrainConfig()).encode()


def configs() -> list[bytes]:
    texts = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    return [*texts, b"photos: &a [*a]\n", b"photos: !!python/object/apply:os.getcwd []\n", b"a: &a {<<: *a}\n"]
