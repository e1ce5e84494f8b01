"""One way of restoring, measured in a process of its own: `python restoring_runs.py NAME JOB`, prints a line of JSON.

Names: ours, ours exact, pytorch, onnxruntime, opencv. JOB is JSON: the weights, the photo, its luma as .npy, the
number of cores, the variant ("whole" or the side of the tiles), where outputs go. Peers see nothing of srcnn.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HALO = 8  # more than the 6 pixels that this network sees around one, and a multiple of 8
Network = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    name, job = sys.argv[1], json.loads(sys.argv[2])
    network, restore_file = SYSTEMS[name](job)
    luma = np.load(job["luma"])  # uint8; the peers take fractions
    if not name.startswith("ours"):
        luma = luma.astype(np.float32) / 255
    network(luma[:300, :400].copy())  # kernels are chosen, threads started
    before = peak_mb()
    result: dict[str, Any] = {}
    if job["measure"] == "file":
        result["seconds"] = seconds(lambda: restore_file(Path(job["photo"]), Path(job["out"])))
    else:
        outputs: list[np.ndarray] = []
        result["seconds"] = seconds(lambda: outputs.append(network(luma)))
        np.save(job["out"], outputs[0])
    print(json.dumps(result | {"peak_mb": peak_mb() - before}))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_mb() -> float:
    """Most memory so far, MB: what is left of it after the imports and a small photo is the photo's own."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def tiled(network: Network, variant: str) -> Network:
    """The network tile by tile, cut with a halo; the tiles at the right and the bottom are moved in, so that all have
    one size.
    """
    if variant == "whole":
        return network

    def over_tiles(luma: np.ndarray) -> np.ndarray:
        restored = np.empty_like(luma)
        sides = [min(int(variant), length) for length in luma.shape]
        for top, left in ((y, x) for y in starts(luma.shape[0], sides[0]) for x in starts(luma.shape[1], sides[1])):
            bottom, right = top + sides[0], left + sides[1]
            above, before = min(HALO, top), min(HALO, left)
            tile = network(luma[top - above : bottom + HALO, left - before : right + HALO])
            restored[top:bottom, left:right] = tile[above:, before:][: sides[0], : sides[1]]
        return restored

    return over_tiles


def starts(length: int, side: int) -> list[int]:
    return [min(start, length - side) for start in range(0, length, side)]


def with_colour(network: Network) -> Callable[[Path, Path], None]:
    """File to file: the luma restored, the chroma left as it is, without a way over RGB."""

    def restore_file(photo: Path, out: Path) -> None:
        luma, *chroma = Image.open(photo).convert("YCbCr").split()
        restored = network(np.asarray(luma, np.float32) / 255) * 255
        levels = Image.fromarray(np.rint(restored).clip(0, 255).astype(np.uint8))
        Image.merge("YCbCr", [levels, *chroma]).save(out, quality=95, subsampling="4:4:4")

    return restore_file


def ours(job: dict[str, Any], exact: bool = False) -> tuple[Network, Callable[[Path, Path], object]]:
    torch = importlib.import_module("torch")
    torch.set_num_threads(job["cores"])
    srcnn = importlib.import_module("srcnn.restore")
    model = importlib.import_module("srcnn.model").load_model(job["weights"])

    def network(luma: np.ndarray) -> np.ndarray:
        return srcnn.restore_pixels(luma, model, exact=exact)

    files, treatment = (importlib.import_module(f"srcnn.{name}") for name in ("photo_files", "apply"))
    return network, files.RestoreFile(model, treatment.Treatment(exact=exact), smooth_chroma=False)


def pytorch(job: dict[str, Any]) -> tuple[Network, Callable[[Path, Path], None]]:
    """The layers as anybody writes them, the whole photo at once."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(job["cores"])
    weights = torch.load(job["state"], weights_only=True)
    model = plain_model(torch, weights)

    def network(luma: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(luma)[None, None])[0, 0].numpy()

    tiles = tiled(network, job["variant"])
    return tiles, with_colour(tiles)


def plain_model(torch: Any, weights: dict[str, Any]) -> Any:
    """9-1-5 with a residual connection; replicate padding together before the first and the third layer."""

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = torch.nn.Conv2d(1, 64, 9)
            self.conv2 = torch.nn.Conv2d(64, 32, 1)
            self.conv3 = torch.nn.Conv2d(32, 1, 5)

        def forward(self, photo: Any) -> Any:
            pad, relu = torch.nn.functional.pad, torch.relu
            mapped = relu(self.conv2(relu(self.conv1(pad(photo, (2, 2, 2, 2), mode="replicate")))))
            return photo + self.conv3(pad(mapped, (4, 4, 4, 4), mode="replicate"))

    model = Plain()
    model.load_state_dict(weights)
    return model.eval()


def onnxruntime(job: dict[str, Any]) -> tuple[Network, Callable[[Path, Path], None]]:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = job["cores"]
    session = runtime.InferenceSession(job["onnx"], options, providers=["CPUExecutionProvider"])

    def network(luma: np.ndarray) -> np.ndarray:
        return session.run(None, {"photo": luma[None, None]})[0][0, 0]

    tiles = tiled(network, job["variant"])
    return tiles, with_colour(tiles)


def opencv(job: dict[str, Any]) -> tuple[Network, Callable[[Path, Path], None]]:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(job["cores"])
    net = cv2.dnn.readNetFromONNX(job["onnx"])

    def network(luma: np.ndarray) -> np.ndarray:
        net.setInput(np.ascontiguousarray(luma)[None, None])
        return net.forward()[0, 0]

    tiles = tiled(network, job["variant"])
    return tiles, with_colour(tiles)


def folder(job: dict[str, Any]) -> None:
    """A folder of small photos: side by side, one by one, and decoded and encoded alone."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(job["cores"])
    restore, files, paths, canvas = (importlib.import_module(f"srcnn.{name}")
                                     for name in ("restore", "photo_files", "targets", "canvas"))
    model = importlib.import_module("srcnn.model").load_model(job["weights"])
    targets, _ = paths.output_paths(job["folder"], Path(job["out"]))
    work = files.RestoreFile(model, smooth_chroma=False)

    def one_by_one() -> None:
        for path, target in targets.items():
            work(path, target)

    def codecs() -> None:
        for path, target in targets.items():
            canvas.save_canvas(target, canvas.read_canvas(path))

    restore.restore_pixels(np.zeros((320, 480, 3), np.uint8), model)  # kernels are chosen
    side_by_side = seconds(lambda: list(files.work_on_files(targets, work)))  # which makes the folder, too
    print(json.dumps({"seconds": side_by_side, "one_by_one_seconds": seconds(one_by_one),
                      "codecs_seconds": seconds(codecs)}))


def export(job: dict[str, Any]) -> None:
    """The plain model as ONNX, for photos of any size."""
    torch = importlib.import_module("torch")
    model = plain_model(torch, torch.load(job["state"], weights_only=True))
    height, width = (torch.export.Dim(name, min=16, max=65535) for name in ("height", "width"))
    torch.onnx.export(model, (torch.rand(1, 1, 64, 64),), job["onnx"], input_names=["photo"], external_data=False,
                      dynamic_shapes=({2: height, 3: width},), dynamo=True)
    print("{}")


SYSTEMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ours": ours,
    "ours exact": lambda job: ours(job, exact=True),
    "pytorch": pytorch,
    "onnxruntime": onnxruntime,
    "opencv": opencv,
}

if __name__ == "__main__":
    alone = {"export": export, "folder": folder}.get(sys.argv[1])
    if alone:
        alone(json.loads(sys.argv[2]))
    else:
        main()
