"""Restoring on a GPU: a photo of 12 megapixels and folders, beside plain PyTorch and ONNX Runtime; codecs alone."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import restoring
from benchmarks.gpu_part import Part, free_and_reset, is_installed
from benchmarks.restoring_runs import Network, plain_model, with_colour
from srcnn.apply import Treatment, run_network
from srcnn.benchmark import now
from srcnn.export import export_onnx
from srcnn.model import DEFAULT_WEIGHTS, SRCNN, computes_bf16, load_model, to_device
from srcnn.onnx_graph import INPUT
from srcnn.products import full_precision
from srcnn.restore import restore_pixels
from srcnn.restore_files import RestoreFile, work_on_files

WHOLE = 1 << 20  # pixels: a tile as large as any photo
TILES = (0, 512, 2048, WHOLE)
NUM_QUICK = 2  # photos of a folder in a quick run
ROUNDS = 3
NUM_LARGE = 8  # copies of the large photo that are restored as a folder
WAY_SECONDS = 20.0
Work = Callable[[], object]


def measure(part: Part) -> None:
    files = part.work.resolve() / "restoring"
    options = argparse.Namespace(files=files, photos=find_photos(part), quick=part.quick)
    restoring.make_photos(options, cells=(1, 1) if part.quick else (5, 5))
    model = to_device(load_model(DEFAULT_WEIGHTS), part.device)
    luma = np.load(files / "luma.npy")
    part.note(megapixels=luma.size / 1e6)
    rows: list[dict[str, Any]] = []
    turns: list[tuple[dict[str, Any], Work]] = []
    for about, make, megapixels in ways(part, model, luma, files):
        name = f"{about['what']}, {about['by']}"
        work = part.attempt(name, lambda: made_and_done(make), WAY_SECONDS)
        if work is not None:
            row = about | {"megapixels": megapixels, "rounds": []}
            rows.append(row)
            turns.append((row, work))
            part.attempt(f"{name}, first round", lambda: take_turn(part, row, work))
            part.note(rows=rows)
    for _ in range(0 if part.quick else ROUNDS - 1):
        for row, work in turns:
            part.attempt(f"{row['what']}, {row['by']}, again", lambda: take_turn(part, row, work), WAY_SECONDS)
        part.note(rows=rows)


def made_and_done(make: Callable[[], Work]) -> Work:
    """The work, done once: kernels are chosen, memory is had."""
    work = make()
    work()
    return work


def find_photos(part: Part) -> Path | None:
    """Those of the run; None, drawn ones, in a quick one."""
    below = [part.work / "drawn"] if part.photos is None else [part.photos / "train", part.photos]
    return next((folder for folder in below if folder.is_dir()), None)


def take_turn(part: Part, row: dict[str, Any], work: Work) -> None:
    before = free_and_reset(part.device)
    begin = now(part.device)
    work()
    row["rounds"].append(row["megapixels"] / (now(part.device) - begin))
    row["mp_per_second"] = median(row["rounds"])
    if part.device.type == "cuda":
        row["peak_gib"] = (torch.cuda.max_memory_allocated(part.device) - before) / 2**30


def ways(
    part: Part, model: SRCNN, luma: np.ndarray, files: Path
) -> Iterator[tuple[dict[str, Any], Callable[[], Work], float]]:
    """(what and by whom, something that makes the work, the work's megapixels)."""
    large, small = luma.size / 1e6, megapixels_of(photos_in(part, files / "small"))
    for exact in (False, True):
        by = "srcnn, float32" if exact else "srcnn"
        for tile in TILES[:: 3 if part.quick else 1]:
            tiled = {0: by, WHOLE: f"{by}, whole"}.get(tile, f"{by}, tiles of {tile}")
            yield {"what": "luma to luma", "by": tiled}, lambda: in_tiles(model, luma, tile, exact), large
        yield {"what": "on the device", "by": by}, lambda: on_device(part, model, luma, exact), large
        restore = RestoreFile(model, Treatment(exact=exact), smooth_chroma=False)
        yield {"what": "file to file", "by": by}, lambda: one_file(restore, files), large
        yield {"what": "folder of small photos", "by": by}, lambda: folder(part, restore, files / "small"), small
        yield ({"what": "folder of large photos", "by": by}, lambda: folder(part, restore, copies(part, files)),
               large * num_copies(part))
    peers: dict[str, Callable[[], Network]] = {
        "PyTorch, eager": lambda: plain(part, files),
        f"ONNX Runtime, {part.device.type}": lambda: onnxruntime(part, model, files),
    }
    for by, make in peers.items():
        yield {"what": "luma to luma", "by": by}, lambda: applied(make(), luma), large
        yield {"what": "file to file", "by": by}, lambda: file_to_file(make(), files), large
    yield from codecs(part, files, large, small)


def in_tiles(model: SRCNN, luma: np.ndarray, tile_pixels: int, exact: bool) -> Work:
    return lambda: restore_pixels(luma, model, tile_pixels, exact=exact)


def one_file(restore: RestoreFile, files: Path) -> Work:
    return lambda: restore(files / "photo.jpg", files / "restored.jpg")


def on_device(part: Part, model: SRCNN, luma: np.ndarray, exact: bool) -> Work:
    """The network alone, on the whole photo, which is there already."""
    pixels = torch.from_numpy(luma).to(part.device).float().div(255)[None]
    bf16 = not exact and computes_bf16(part.device)

    def work() -> None:
        with torch.inference_mode(), full_precision():
            run_network(pixels, model, bf16)

    return work


def folder(part: Part, restore: RestoreFile, photos: Path) -> Work:
    out = photos.with_name(f"{photos.name}-restored")
    targets = {path: out / path.name for path in photos_in(part, photos)}
    return lambda: list(work_on_files(targets, restore))


def photos_in(part: Part, photos: Path) -> list[Path]:
    return sorted(photos.glob("*.jpg"))[: NUM_QUICK if part.quick else None]


def num_copies(part: Part) -> int:
    return NUM_QUICK if part.quick else NUM_LARGE


def copies(part: Part, files: Path) -> Path:
    """A folder with the large photo some times."""
    large = files / "large"
    large.mkdir(exist_ok=True)
    for number in range(num_copies(part)):
        path = large / f"{number}.jpg"
        if not path.exists():
            path.hardlink_to(files / "photo.jpg")
    return large


def megapixels_of(photos: list[Path]) -> float:
    total = 0
    for path in photos:
        with Image.open(path) as image:
            total += image.width * image.height
    return total / 1e6


def plain(part: Part, files: Path) -> Network:
    """The layers as anybody writes them, the whole photo at once, with PyTorch's own settings."""
    model = plain_model(torch, torch.load(files / "weights.pth", weights_only=True)).to(part.device)

    def network(luma: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(luma)[None, None].to(part.device))[0, 0].cpu().numpy()

    return network


def onnxruntime(part: Part, model: SRCNN, files: Path) -> Network:
    """On the same device. Raises RuntimeError where it is not installed for it."""
    provider = "CUDAExecutionProvider" if part.device.type == "cuda" else "CPUExecutionProvider"
    if not is_installed("onnxruntime") or not is_installed("onnx"):
        raise RuntimeError("onnx and onnxruntime are not installed")
    import onnxruntime as runtime

    if provider not in runtime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {provider}")
    path = files / "exported.onnx"
    export_onnx(model, path)
    session = runtime.InferenceSession(str(path), providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError(f"onnxruntime could not start its {provider}")
    return lambda luma: session.run(None, {INPUT: luma[None, None]})[0][0, 0]


def applied(network: Network, luma: np.ndarray) -> Work:
    """uint8 to uint8, as srcnn's."""
    return lambda: np.rint(network(luma.astype(np.float32) / 255) * 255).clip(0, 255).astype(np.uint8)


def file_to_file(network: Network, files: Path) -> Work:
    restore_file = with_colour(network)
    return lambda: restore_file(files / "photo.jpg", files / "restored-peer.jpg")


def codecs(
    part: Part, files: Path, large: float, small: float
) -> Iterator[tuple[dict[str, Any], Callable[[], Work], float]]:
    """JPEGs decoded and encoded: by Pillow on as many threads as there are cores, and by nvJPEG."""
    photos = photos_in(part, files / "small")
    sets = {"small photos": ([path.read_bytes() for path in photos], small),
            "the large photo": ([(files / "photo.jpg").read_bytes()], large)}
    for name, (contents, megapixels) in sets.items():
        makers = {"Pillow": lambda: by_pillow(contents), "nvJPEG": lambda: by_nvjpeg(part, contents)}
        for by, make in makers.items():
            for number, what in enumerate(("decode", "encode")):
                yield {"what": f"{what} {name}", "by": by}, lambda: make()[number], megapixels


def by_pillow(contents: list[bytes]) -> tuple[Work, Work]:
    """(decoding, encoding) of all."""
    def decode(content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content)).convert("RGB")

    def encode(image: Image.Image) -> int:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        return buffer.tell()

    pool = ThreadPoolExecutor(torch.get_num_threads())
    images = list(pool.map(decode, contents))
    return lambda: list(pool.map(decode, contents)), lambda: list(pool.map(encode, images))


def by_nvjpeg(part: Part, contents: list[bytes]) -> tuple[Work, Work]:
    """As `by_pillow`, into and out of the device's memory."""
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

    if part.device.type != "cuda":
        raise RuntimeError("nvJPEG needs a GPU of NVIDIA's")
    given = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    images = decode_jpeg(given, mode=ImageReadMode.RGB, device=part.device)
    return (lambda: decode_jpeg(given, mode=ImageReadMode.RGB, device=part.device),
            lambda: encode_jpeg(images, quality=95))
