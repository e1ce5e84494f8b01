"""Restoring a photo side by side: `python -m benchmarks.restoring --help`.

A colour photo of 12 megapixels, put together from real photographs (or drawn skylines) and saved as a JPEG of quality
20, is restored by the same network with the same weights: by srcnn in both precisions, by plain PyTorch, ONNX Runtime
and OpenCV DNN. Each peer takes the whole photo or tiles of the side that suits it best. All run in turn, round after
round, each in a process of its own that is pinned to the same cores; medians. "Network" is from luma to luma in
memory, "file" from JPEG to JPEG. Then a folder of small photos, and with --large the memory that 200 megapixels take.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from benchmarks.dataset import photos_below
from benchmarks.loading.environments import python_of, versions
from benchmarks.measure import WORK, Failed, alternate, call_json, log, machine, medians, not_measured, table
from shards.skylines import draw_skyline
from srcnn.commands.output_paths import output_paths
from srcnn.models.device import to_device
from srcnn.models.weight_files import DEFAULT_WEIGHTS
from srcnn.models.weights import load_model, save_state_dict
from srcnn.photos.metrics import psnr
from srcnn.photos.photo_file import read_photo_file, write_photo_file
from srcnn.photos.reading import luma_l
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore import restore
from srcnn.restoration.restore_files import RestoreFile, work_on_files
from srcnn.restoration.tiled_inference import RestoreOptions

CELL = (800, 600)  # width, height of the pictures that the photo is put together from
VARIANTS = ("whole", "256", "512", "1024")
OURS, EXACT = "srcnn", "srcnn --exact"
# Each peer, what pip installs for it, and whether the best size of tiles is tried.
PEERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "PyTorch": ((), False), "ONNX Runtime": ((), True), "OpenCV DNN": (("opencv-python-headless",), True),
}
EXPORTER = ("onnx", "onnxscript")
HALO = 8  # more than the 6 pixels that this network sees around one, and a multiple of 8
TIMEOUT_SECONDS = 900
Network = Callable[[np.ndarray], np.ndarray]  # of luma (H, W): uint8 for ours, float32 in [0, 1] for the others


class PlainNetwork(nn.Module):
    """9-1-5 with a residual connection as anybody writes it; the first two layers' replicate padding is one."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 9)
        self.conv2 = nn.Conv2d(64, 32, 1)
        self.conv3 = nn.Conv2d(32, 1, 5)
        state = torch.load(weights, weights_only=True)
        self.load_state_dict({name: tensor for name, tensor in state.items() if name != "residual"})
        self.eval()

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        pad, relu = nn.functional.pad, torch.relu
        mapped = relu(self.conv2(relu(self.conv1(pad(photo, (2, 2, 2, 2), mode="replicate")))))
        restored: torch.Tensor = photo + self.conv3(pad(mapped, (4, 4, 4, 4), mode="replicate"))
        return restored


def pytorch(files: Path, cores: int, device: torch.device) -> Network:
    model = PlainNetwork(files / "weights.pth").to(device)

    def network(luma: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(luma)[None, None].to(device))[0, 0].cpu().numpy()

    return network


def onnxruntime(files: Path, cores: int, device: torch.device) -> Network:
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = cores
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    session = runtime.InferenceSession(str(files / "network.onnx"), options, providers=[provider])
    if provider not in session.get_providers():
        raise Failed(f"this onnxruntime cannot start its {provider}")
    return lambda luma: session.run(None, {"photo": luma[None, None]})[0][0, 0]


def opencv(files: Path, cores: int, device: torch.device) -> Network:
    import cv2

    cv2.setNumThreads(cores)
    net = cv2.dnn.readNetFromONNX(str(files / "network.onnx"))

    def network(luma: np.ndarray) -> np.ndarray:
        net.setInput(np.ascontiguousarray(luma)[None, None])
        return net.forward()[0, 0]

    return network


NETWORKS: dict[str, Callable[[Path, int, torch.device], Network]] = {
    "PyTorch": pytorch, "ONNX Runtime": onnxruntime, "OpenCV DNN": opencv,
}


def tiled(network: Network, variant: str) -> Network:
    """The network tile by tile, cut with a halo; the tiles at the right and the bottom are moved in, so that all have
    one size.
    """
    if variant == "whole":
        return network

    def starts(length: int, side: int) -> list[int]:
        return [min(start, length - side) for start in range(0, length, side)]

    def over_tiles(luma: np.ndarray) -> np.ndarray:
        restored = np.empty_like(luma)
        height, width = (min(int(variant), length) for length in luma.shape)
        for top, left in ((y, x) for y in starts(luma.shape[0], height) for x in starts(luma.shape[1], width)):
            bottom, right = top + height, left + width
            above, before = min(HALO, top), min(HALO, left)
            tile = network(luma[top - above : bottom + HALO, left - before : right + HALO])
            restored[top:bottom, left:right] = tile[above:, before:][:height, :width]
        return restored

    return over_tiles


def restore_file(network: Network, photo: Path, out: Path) -> None:
    """File to file: the luma restored, the chroma left as it is, without a way over RGB."""
    luma, *chroma = Image.open(photo).convert("YCbCr").split()
    restored = network(np.asarray(luma, np.float32) / 255) * 255
    levels = Image.fromarray(np.rint(restored).clip(0, 255).astype(np.uint8))
    Image.merge("YCbCr", [levels, *chroma]).save(out, quality=95, subsampling="4:4:4")


def run_system(name: str, variant: str, photo: Path, files: Path, cores: int, device: torch.device) -> dict[str, float]:
    """In the system's own process: seconds from file to file and from luma to luma, and the file's peak of memory."""
    luma = np.load(files / "luma.npy")
    network: Network
    if name in (OURS, EXACT):
        model, exact = to_device(load_model(DEFAULT_WEIGHTS), device), name == EXACT
        network = partial(restore, model=model, exact=exact)
        restorer = JpegRestorer(model, RestoreOptions(exact=exact, smooth_chroma=False))
        from_file: Callable[[Path, Path], object] = RestoreFile(restorer, quality=95)
    else:
        network = tiled(NETWORKS[name](files, cores, device), variant)
        from_file = partial(restore_file, network)
        luma = luma.astype(np.float32) / 255
    network(luma[:300, :400].copy())  # kernels are chosen, threads started
    before = peak_mb(device)
    file_seconds = seconds(lambda: from_file(photo, files / f"{name}.jpg"))
    peak = peak_mb(device) - before
    outputs: list[np.ndarray] = []
    network_seconds = seconds(lambda: outputs.append(network(luma)))
    np.save(files / f"{name}.npy", outputs[0])
    return {"file_seconds": file_seconds, "network_seconds": network_seconds, "peak_mb": peak}


def run_folder(files: Path, cores: int, device: torch.device) -> dict[str, float]:
    """Seconds of a folder of small photos: side by side, one by one, and decoded and encoded alone."""
    model = to_device(load_model(DEFAULT_WEIGHTS), device)
    targets = output_paths(str(files / "small"), files / "restored").targets
    work = RestoreFile(JpegRestorer(model, RestoreOptions(smooth_chroma=False)), quality=95)
    restore(np.zeros((320, 480, 3), np.uint8), model)  # kernels are chosen
    return {
        "side by side": seconds(lambda: list(work_on_files(targets, work))),  # which makes the folder, too
        "one by one": seconds(lambda: [work(path, target) for path, target in targets.items()]),
        "codecs alone": seconds(
            lambda: [write_photo_file(target, read_photo_file(path)) for path, target in targets.items()]),
    }


def export(files: Path, cores: int, device: torch.device) -> dict[str, float]:
    """The plain network as ONNX, for photos of any size."""
    height, width = (torch.export.Dim(name, min=16, max=65535) for name in ("height", "width"))
    torch.onnx.export(PlainNetwork(files / "weights.pth"), (torch.rand(1, 1, 64, 64),), str(files / "network.onnx"),
                      input_names=["photo"], external_data=False, dynamic_shapes=({2: height, 3: width},), dynamo=True)
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


def in_process(options: argparse.Namespace, name: str, python: Path | str = sys.executable, variant: str = "whole",
               photo: Path | None = None) -> dict[str, Any]:
    """What `run_system` (or another function of this file by its name) returns in a process pinned to the cores."""
    job = {"name": name, "variant": variant, "photo": str(photo or options.files / "photo.jpg"),
           "files": str(options.files), "cores": options.cores, "device": options.device}
    return call_json([python, "-m", "benchmarks.restoring", "--job", json.dumps(job)], options.cores,
                     {"PYTHONPATH": str(Path(__file__).parents[1])}, TIMEOUT_SECONDS)


def run_job(job: dict[str, Any]) -> dict[str, float]:
    files, cores, device = Path(job["files"]), job["cores"], torch.device(job["device"])
    torch.set_num_threads(cores)
    if job["name"] in ("folder", "export"):
        return {"folder": run_folder, "export": export}[job["name"]](files, cores, device)
    return run_system(job["name"], job["variant"], Path(job["photo"]), files, cores, device)


def make_photos(options: argparse.Namespace) -> None:
    """clean.png, photo.jpg, luma.npy, small/*.jpg and the weights as a plain state_dict, made once."""
    files = options.files
    if (files / ".ready").is_file():
        return
    log("making the photos")
    (files / "small").mkdir(parents=True, exist_ok=True)
    across, down, num_small = (2, 1, 4) if options.quick else (5, 5, 100)
    clean = Image.new("RGB", (across * CELL[0], down * CELL[1]))
    for number, cell in enumerate(pictures(options.photos, across * down)):
        clean.paste(cell, (number % across * CELL[0], number // across * CELL[1]))
    clean.save(files / "clean.png")
    clean.save(files / "photo.jpg", quality=20)
    np.save(files / "luma.npy", luma_l(np.asarray(Image.open(files / "photo.jpg"))))
    for number in range(num_small):
        left, top = number * 7919 % (clean.width - 480), number * 104729 % (clean.height - 320)
        clean.crop((left, top, left + 480, top + 320)).save(files / "small" / f"{number:03d}.jpg", quality=20)
    save_state_dict(load_model(DEFAULT_WEIGHTS), files / "weights.pth")
    (files / ".ready").touch()


def pictures(folder: Path | None, num: int) -> list[Image.Image]:
    """So many pictures of the size of a cell, of photographs spread over the folder, or drawn."""
    if folder is None:
        return [Image.fromarray(draw_skyline(seed, CELL)) for seed in range(num)]
    paths = photos_below(folder)
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, num).astype(int)]
    return [ImageOps.fit(Image.open(path).convert("RGB"), CELL) for path in chosen]


def prepare(options: argparse.Namespace, failed: dict[str, str]) -> dict[str, tuple[Path | str, str]]:
    """The interpreter and the fastest variant of each system."""
    systems: dict[str, tuple[Path | str, str]] = {OURS: (sys.executable, "whole"), EXACT: (sys.executable, "whole")}
    for name in options.peers:
        packages, can_tile = PEERS[name]
        try:
            if can_tile and not (options.files / "network.onnx").is_file():
                in_process(options, "export", python_of(options.work, EXPORTER))
            python = python_of(options.work, packages)
            systems[name] = python, fastest(options, name, python) if can_tile else "whole"
            log(versions(python, packages or (("onnxruntime",) if can_tile else ("torch",))))
        except Failed as error:
            failed[name] = str(error)
    return systems


def fastest(options: argparse.Namespace, name: str, python: Path) -> str:
    """The variant with the best of two runs."""
    runs = alternate({variant: partial(in_process, options, name, python, variant) for variant in VARIANTS}, 2)
    return min(runs, key=lambda variant: min(run["network_seconds"] for run in runs[variant]))


def levels_off(files: Path, name: str) -> int:
    """The largest difference, in levels, between this system's output and ours in float32, both rounded."""
    ours, other = (np.load(files / f"{each}.npy") for each in (EXACT, name))
    if other.dtype != np.uint8:
        other = np.rint(other * 255).clip(0, 255).astype(np.uint8)
    return int(np.abs(ours.astype(np.int16) - other).max())


def measure(options: argparse.Namespace) -> str:
    """The table, and what was measured besides."""
    make_photos(options)
    failed: dict[str, str] = {}
    systems = prepare(options, failed)
    runs = alternate({name: partial(in_process, options, name, *system) for name, system in systems.items()},
                     options.rounds, failed)
    megapixels = np.load(options.files / "luma.npy").size / 1e6
    rows = []
    for name, middle in zip(runs, map(medians, runs.values()), strict=True):
        tiles = "its own" if name in (OURS, EXACT) else systems[name][1]
        rows.append([name, tiles, f"{megapixels / middle['network_seconds']:.2f}", f"{middle['file_seconds']:.2f}",
                     f"{middle['peak_mb']:.0f}", levels_off(options.files, name)])
    clean = luma_l(np.asarray(Image.open(options.files / "clean.png")))
    exact, fast = (psnr(clean, np.load(options.files / f"{name}.npy")) for name in (EXACT, OURS))
    folders = [in_process(options, "folder") for _ in range(options.rounds)]
    small = ", ".join(f"{key} {median(one[key] for one in folders):.2f} s" for key in folders[0])
    lines = [table(["", "tiles", "network, MP/s", "file to file, s", "peak memory, MB", "most levels off"], rows),
             f"A photo of {megapixels:.1f} megapixels. The default is {fast - exact:+.4f} dB from `--exact`. "
             f"{len(list((options.files / 'small').iterdir()))} photos of 480x320: {small}.", not_measured(failed)]
    if options.large:
        large = options.files / "large.jpg"
        with Image.open(options.files / "clean.png") as photo:
            ImageOps.fit(photo, (16000, 12500)).save(large, quality=20)
        lines.append(f"200 megapixels: {in_process(options, OURS, photo=large)['peak_mb']:.0f} MB beyond the imports.")
    return "\n\n".join(filter(None, lines))


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
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rounds = 1 if options.quick else options.rounds
    options.work = options.work.resolve()
    options.files = options.work / ("restoring-quick" if options.quick else "restoring")
    return options


def main() -> int:
    options = parse()
    print(json.dumps(run_job(options.job)) if options.job else f"{measure(options)}\n\n{machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
