"""Restoring a photo side by side: `python -m benchmarks.restoring --help`.

A colour photo of 12 megapixels, put together from real photographs (or drawn skylines) and saved as a JPEG of quality
20, is restored by the same network with the same weights: by srcnn in both precisions, by plain PyTorch, ONNX Runtime,
OpenVINO in both precisions and OpenCV DNN. Each peer takes the whole photo or tiles of the side that suits it best. All
run in turn, round after round, each in a process of its own that is pinned to the same cores; medians. "Network" is
from pixels to pixels in memory, "file" from JPEG to JPEG. Then a folder of small photos, and with --large the memory
that 200 megapixels take.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.dataset import photos_below
from benchmarks.loading.environments import versions
from benchmarks.measure import WORK, Failed, alternate, call_json, log, machine, medians, not_measured, table
from shards.skylines import draw_skyline
from srcnn.commands.output_paths import output_paths
from srcnn.models.base import Network
from srcnn.models.device import to_device
from srcnn.models.export import export_onnx, export_torch
from srcnn.models.weights import load_model
from srcnn.photos.jpeg_quality import jpeg_save
from srcnn.photos.metrics import psnr
from srcnn.photos.photo_file import read_photo_file, write_photo_file
from srcnn.photos.reading import luma_l
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore import restore
from srcnn.restoration.restore_files import RestoreFile, work_on_files
from srcnn.restoration.tiled_inference import RestoreOptions

CELL = (800, 600)  # width, height of the pictures that the photo is put together from
QUALITY = 20
LUMA_NETWORK = "srcnn-915-q20"
NETWORKS = (LUMA_NETWORK, "unet-jpeg")
VARIANTS = ("whole", "256", "512", "1024")
OURS, EXACT = "srcnn", "srcnn --exact"
# Each peer, its package (srcnn[test]), and whether the best size of tiles is tried.
PEERS = {"PyTorch": ("torch", False), "ONNX Runtime": ("onnxruntime", True), "OpenVINO": ("openvino", True),
         "OpenVINO bf16": ("openvino", True), "OpenCV DNN": ("opencv-python-headless", True)}
HALOS = {2: 8, 3: 48}  # by ndim: more than the 6 pixels that 9-1-5 sees, and a multiple of 8; as ours for the U-Net
TIMEOUT_SECONDS = 900
Function = Callable[[np.ndarray], np.ndarray]  # of pixels: uint8 for ours, float32 in [0, 1] for the others


def model_of(name: str) -> Network:
    """The network, for a JPEG of the quality of the photo: peers get none with a condition."""
    return load_model(name).with_condition(jpeg_save(QUALITY, grey=False).condition)


def pytorch(files: Path, cores: int, device: torch.device) -> Function:
    model = torch.export.load(files / "network.pt2").module().to(device)

    def network(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels).to(device)).cpu().numpy()

    return network


def onnxruntime(files: Path, cores: int, device: torch.device) -> Function:
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = cores
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    session = runtime.InferenceSession(str(files / "network.onnx"), options, providers=[provider])
    if provider not in session.get_providers():
        raise Failed(f"this onnxruntime cannot start its {provider}")
    return lambda pixels: session.run(None, {"input": pixels})[0]


def openvino(files: Path, cores: int, device: torch.device, precision: str = "f32") -> Function:
    import openvino

    if device.type != "cpu":
        raise Failed("OpenVINO does not run on NVIDIA's GPUs")
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": cores, "PERFORMANCE_HINT": "LATENCY"}

    @cache  # compiled for each size of tile, as its documentation advises
    def compiled(shape: tuple[int, ...]) -> Any:
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Failed("this processor has no bfloat16")
        model = core.read_model(files / "network.onnx")
        model.reshape(list(shape))
        return core.compile_model(model, "CPU", settings).create_infer_request()

    return lambda pixels: compiled(pixels.shape).infer([pixels])[0]


def opencv(files: Path, cores: int, device: torch.device) -> Function:
    import cv2

    cv2.setNumThreads(cores)
    net = cv2.dnn.readNetFromONNX(str(files / "network.onnx"))

    def network(pixels: np.ndarray) -> np.ndarray:
        net.setInput(pixels)
        return net.forward()

    return network


FUNCTIONS: dict[str, Callable[[Path, int, torch.device], Function]] = {
    "PyTorch": pytorch, "ONNX Runtime": onnxruntime, "OpenVINO": openvino,
    "OpenVINO bf16": partial(openvino, precision="bf16"), "OpenCV DNN": opencv,
}


def tiled(function: Function, variant: str) -> Function:
    """The network tile by tile, cut with a halo; the tiles at the right and the bottom are moved in, so that all have
    one size. Here pixels are (H, W) or (H, W, 3).
    """
    def at_once(pixels: np.ndarray) -> np.ndarray:
        planes = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
        return function(np.ascontiguousarray(planes)[None])[0].transpose(1, 2, 0).reshape(pixels.shape)

    if variant == "whole":
        return at_once

    def starts(length: int, side: int) -> list[int]:
        return [min(start, length - side) for start in range(0, length, side)]

    def over_tiles(pixels: np.ndarray) -> np.ndarray:
        restored, halo = np.empty_like(pixels), HALOS[pixels.ndim]
        height, width = (min(int(variant), length) for length in pixels.shape[:2])
        for top, left in ((y, x) for y in starts(len(pixels), height) for x in starts(pixels.shape[1], width)):
            bottom, right = top + height, left + width
            above, before = min(halo, top), min(halo, left)
            tile = at_once(pixels[top - above : bottom + halo, left - before : right + halo])
            restored[top:bottom, left:right] = tile[above:, before:][:height, :width]
        return restored

    return over_tiles


def restore_file(function: Function, name: str, photo: Path, out: Path) -> None:
    """File to file: RGB, or the luma with the chroma as it is, without a way over RGB."""
    image, chroma = Image.open(photo), []
    if name == LUMA_NETWORK:
        image, *chroma = image.convert("YCbCr").split()
    restored = function(np.asarray(image, np.float32) / 255) * 255
    image = Image.fromarray(np.rint(restored).clip(0, 255).astype(np.uint8))
    image = Image.merge("YCbCr", [image, *chroma]) if chroma else image
    image.save(out, quality=95, subsampling="4:4:4")


def run_system(job: dict[str, Any], files: Path, device: torch.device) -> dict[str, float]:
    """In the system's own process: seconds from file to file and from pixels to pixels, and its peak of memory."""
    name, network, photo = job["name"], job["network"], Path(job["photo"])
    pixels = np.load(files / "pixels.npy")
    if name in (OURS, EXACT):
        model, exact = to_device(load_model(network), device), name == EXACT
        quality = None if network == LUMA_NETWORK else QUALITY
        function: Function = partial(restore, model=model, exact=exact, quality=quality)
        restorer = JpegRestorer(model, RestoreOptions(exact=exact, smooth_chroma=False))
        from_file: Callable[[Path, Path], object] = RestoreFile(restorer, quality=95)
    else:
        function = tiled(FUNCTIONS[name](files, job["cores"], device), job["variant"])
        from_file = partial(restore_file, function, network)
        pixels = pixels.astype(np.float32) / 255
    before = peak_mb(device)
    from_file(photo, files / f"{name}.jpg")  # kernels are chosen and compiled for each size, threads started
    file_seconds = seconds(lambda: from_file(photo, files / f"{name}.jpg"))
    peak = peak_mb(device) - before
    outputs: list[np.ndarray] = []
    network_seconds = seconds(lambda: outputs.append(function(pixels)))
    np.save(files / f"{name}.npy", outputs[0])
    return {"file_seconds": file_seconds, "network_seconds": network_seconds, "peak_mb": peak}


def run_folder(job: dict[str, Any], files: Path, device: torch.device) -> dict[str, float]:
    """Seconds of a folder of small photos: side by side, one by one, and decoded and encoded alone."""
    model = to_device(load_model(job["network"]), device)
    targets = output_paths(str(files.parent / "small"), files / "restored").targets
    work = RestoreFile(JpegRestorer(model, RestoreOptions(smooth_chroma=False)), quality=95)
    restore(np.zeros((320, 480, 3), np.uint8), model)  # kernels are chosen
    return {
        "side by side": seconds(lambda: list(work_on_files(targets, work))),  # which makes the folder, too
        "one by one": seconds(lambda: [work(path, target) for path, target in targets.items()]),
        "codecs alone": seconds(
            lambda: [write_photo_file(target, read_photo_file(path)) for path, target in targets.items()]),
    }


def export(job: dict[str, Any], files: Path, device: torch.device) -> dict[str, float]:
    """The network as the peers read it, for photos of any size."""
    model = model_of(job["network"])
    export_onnx(model, files / "network.onnx", luma=job["network"] == LUMA_NETWORK)
    export_torch(model, files / "network.pt2", luma=job["network"] == LUMA_NETWORK)
    return {}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mb(device: torch.device) -> float:
    """Most memory of this process so far, MB; on a GPU that of the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def in_process(options: argparse.Namespace, network: str, name: str, variant: str = "whole",
               photo: Path | None = None) -> dict[str, Any]:
    """What `run_system` (or another function of this file by its name) returns in a process pinned to the cores."""
    job = {"name": name, "network": network, "variant": variant, "photo": str(photo or options.files / "photo.jpg"),
           "files": str(options.files / network), "cores": options.cores, "device": options.device}
    return call_json([sys.executable, "-m", "benchmarks.restoring", "--job", json.dumps(job)], options.cores,
                     timeout_seconds=TIMEOUT_SECONDS)


def run_job(job: dict[str, Any]) -> dict[str, float]:
    torch.set_num_threads(job["cores"])
    work = {"folder": run_folder, "export": export}.get(job["name"], run_system)
    return work(job, Path(job["files"]), torch.device(job["device"]))


def make_photos(options: argparse.Namespace) -> None:
    """clean.png, photo.jpg, small/*.jpg and, for each network, pixels.npy, made once."""
    files = options.files
    if (files / ".ready").is_file():
        return
    log("making the photos")
    for folder in ("small", *NETWORKS):
        (files / folder).mkdir(parents=True, exist_ok=True)
    across, down, num_small = (2, 1, 4) if options.quick else (5, 5, 100)
    clean = Image.new("RGB", (across * CELL[0], down * CELL[1]))
    for number, cell in enumerate(pictures(options.photos, across * down)):
        clean.paste(cell, (number % across * CELL[0], number // across * CELL[1]))
    clean.save(files / "clean.png")
    clean.save(files / "photo.jpg", quality=QUALITY)
    for network in NETWORKS:
        np.save(files / network / "pixels.npy", pixels_of(files / "photo.jpg", network))
    for number in range(num_small):
        left, top = number * 7919 % (clean.width - 480), number * 104729 % (clean.height - 320)
        clean.crop((left, top, left + 480, top + 320)).save(files / "small" / f"{number:03d}.jpg", quality=QUALITY)
    (files / ".ready").touch()


def pixels_of(photo: Path, network: str) -> np.ndarray:
    """What the network restores of a photo: its luma, or all."""
    pixels = np.asarray(Image.open(photo))
    return luma_l(pixels) if network == LUMA_NETWORK else pixels


def pictures(folder: Path | None, num: int) -> list[Image.Image]:
    """So many pictures of the size of a cell, of photographs spread over the folder, or drawn."""
    if folder is None:
        return [Image.fromarray(draw_skyline(seed, CELL)) for seed in range(num)]
    paths = photos_below(folder)
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, num).astype(int)]
    return [ImageOps.fit(Image.open(path).convert("RGB"), CELL) for path in chosen]


def prepare(options: argparse.Namespace, network: str, failed: dict[str, str]) -> dict[str, str]:
    """The fastest variant of each system."""
    systems = {OURS: "whole", EXACT: "whole"}
    if not (options.files / network / "network.pt2").is_file():
        in_process(options, network, "export")
    for name in options.peers:
        package, can_tile = PEERS[name]
        try:
            log(versions(Path(sys.executable), (package,)))
            systems[name] = fastest(options, network, name) if can_tile else "whole"
        except Failed as error:
            failed[name] = str(error)
    return systems


def fastest(options: argparse.Namespace, network: str, name: str) -> str:
    """The variant with the best of two runs."""
    failed: dict[str, str] = {}
    variants = {variant: partial(in_process, options, network, name, variant) for variant in VARIANTS}
    runs = alternate(variants, 1 if options.quick else 2, failed)
    if not runs:
        raise Failed(next(iter(failed.values())))
    return min(runs, key=lambda variant: min(run["network_seconds"] for run in runs[variant]))


def levels_off(files: Path, name: str) -> int:
    """The largest difference, in levels, between this system's output and ours in float32, both rounded."""
    ours, other = (np.load(files / f"{each}.npy") for each in (EXACT, name))
    if other.dtype != np.uint8:
        other = np.rint(other * 255).clip(0, 255).astype(np.uint8)
    return int(np.abs(ours.astype(np.int16) - other).max())


def measure(options: argparse.Namespace, network: str) -> tuple[str, dict[str, Any]]:
    """The table of one network with what was measured besides, and its numbers."""
    failed: dict[str, str] = {}
    systems, files = prepare(options, network, failed), options.files / network
    runs = alternate({name: partial(in_process, options, network, name, variant) for name, variant in systems.items()},
                     options.rounds, failed)
    with Image.open(options.files / "photo.jpg") as photo:
        megapixels = photo.width * photo.height / 1e6
    rows, numbers = [], {}
    for name, middle in zip(runs, map(medians, runs.values()), strict=True):
        tiles = "its own" if name in (OURS, EXACT) else systems[name]
        off = levels_off(files, name)
        rows.append([name, tiles, f"{megapixels / middle['network_seconds']:.2f}", f"{middle['file_seconds']:.2f}",
                     f"{middle['peak_mb']:.0f}", off])
        numbers[name] = {**middle, "tiles": tiles, "levels_off": off}
    clean = pixels_of(options.files / "clean.png", network)
    exact, fast = (psnr(clean, np.load(files / f"{name}.npy")) for name in (EXACT, OURS))
    folders = medians([in_process(options, network, "folder") for _ in range(options.rounds)])
    small = ", ".join(f"{key} {value:.2f} s" for key, value in folders.items())
    lines = [f"### {network}",
             table(["", "tiles", "network, MP/s", "file to file, s", "peak memory, MB", "most levels off"], rows),
             f"A photo of {megapixels:.1f} megapixels. The default is {fast - exact:+.4f} dB from `--exact`. "
             f"{len(list((options.files / 'small').iterdir()))} photos of 480x320: {small}.", not_measured(failed)]
    if options.large:
        large = options.files / "large.jpg"
        with Image.open(options.files / "clean.png") as photo:
            ImageOps.fit(photo, (16000, 12500)).save(large, quality=QUALITY)
        peak = in_process(options, network, OURS, photo=large)["peak_mb"]
        lines.append(f"200 megapixels: {peak:.0f} MB beyond the imports.")
    return "\n\n".join(filter(None, lines)), {"megapixels": megapixels, "systems": numbers, "folder": folders}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures restoring side by side.")
    parser.add_argument("--photos", type=Path, help="real photographs; else drawn ones")
    parser.add_argument("--work", type=Path, default=WORK, help="photos and environments, kept between calls")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="1 megapixel, one round, 4 small photos: does it work?")
    parser.add_argument("--large", action="store_true", help="also the memory that 200 megapixels take; minutes")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rounds = 1 if options.quick else options.rounds
    options.work = options.work.resolve()
    options.files = options.work / ("restoring-quick" if options.quick else "restoring")
    return options


def main() -> int:
    options = parse()
    if options.job:
        print(json.dumps(run_job(options.job)))
        return 0
    make_photos(options)
    results = {}
    for network in options.networks:
        text, results[network] = measure(options, network)
        print(f"{text}\n", flush=True)
    print(machine())
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
