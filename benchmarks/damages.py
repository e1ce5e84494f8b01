"""What `srcnn restore` does to photos as they are found: `python -m benchmarks.damages --photos DIR`; prints a table.

The photos must never have been JPEGs, or have been reduced since. Each is saved in several ways, others are drawn, and
all are restored by the default weights. "Found" is the share with the right grid and a quality within 3. Gains are of
the PSNR over R, G and B, in dB: of the restored pixels, and as saved in the format and quality that `restore` chooses.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tqdm import tqdm

from benchmarks.dataset import photos_of
from benchmarks.measure import Failed, table
from srcnn.models.device import device_here
from srcnn.models.pretrained import WeightSelector
from srcnn.models.weight_files import DEFAULT_MODEL
from srcnn.photos.metrics import psnr
from srcnn.photos.photo_file import read_photo_file
from srcnn.photos.reading import read_photo
from srcnn.restoration.jpeg_damage import JpegRestorer, Treatment
from srcnn.restoration.restore import access_to_file
from srcnn.restoration.restore_files import RestoreFile

QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 85, 88, 90, 95)
SHIFT = 3  # pixels cut off at the left and the top before the photo is saved again
TOLERANCE = 3  # of quality
NUM_DRAWN = 10
# The luma table of a Kodak DX4900, by rows: flatter than libjpeg's.
KODAK = np.array([
    5, 5, 5, 5, 5, 6, 7, 8, 5, 5, 5, 5, 5, 6, 7, 9, 5, 5, 5, 6, 6, 7, 8, 10, 5, 5, 6, 7, 8, 9, 10, 11,
    5, 5, 6, 8, 9, 11, 12, 14, 6, 6, 7, 9, 11, 13, 15, 16, 7, 7, 8, 10, 12, 15, 17, 20, 8, 9, 10, 11, 14, 16, 20, 23,
])  # fmt: skip
ANY = 0  # quality: there is none with such a table


class Case(NamedTuple):
    """A photo file, the clean photo, and the quality and the grid that are to be found; None: nothing is."""

    name: str
    content: bytes
    clean: Image.Image
    quality: int | None = None
    offset: tuple[int, int] = (0, 0)
    suffix: str = ".png"


class Result(NamedTuple):
    """What was found and done. Gains are 0 for photos left alone; `growth` is the result's size over the file's."""

    case: Case
    treatment: Treatment
    gain: float
    gain_saved: float
    growth: float
    seconds: float


def encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def as_file_and_png(name: str, content: bytes, clean: Image.Image, *expected: Any) -> Iterator[Case]:
    yield Case(name, content, clean, *expected, suffix=".jpg")
    yield Case(f"{name}, as PNG", encoded(decoded(content), "PNG"), clean, *expected)


def saved_once(clean: Image.Image) -> Iterator[Case]:
    for quality in QUALITIES:
        yield from as_file_and_png(f"q{quality}", encoded(clean, "JPEG", quality=quality), clean, quality)


def jpegs(clean: Image.Image) -> Iterator[Case]:
    width, height = clean.size
    yield from saved_once(clean)
    yield Case("q20, 4:4:4", encoded(clean, "JPEG", quality=20, subsampling=0), clean, 20, suffix=".jpg")
    for first, last in product((20, 30), (75, 85, 90, 95)):
        once = decoded(encoded(clean, "JPEG", quality=first))
        again = encoded(once, "JPEG", quality=last)
        yield from as_file_and_png(f"q{first}, again q{last}", again, clean, first)
        inner = (SHIFT, SHIFT, width, height)
        moved, offset = encoded(once.crop(inner), "JPEG", quality=last), (-SHIFT % 8, -SHIFT % 8)
        yield from as_file_and_png(f"q{first}, cropped, q{last}", moved, clean.crop(inner), first, offset)
    for times in (3, 8):
        tables = [(KODAK * times).clip(1, 255).tolist()] * 2
        yield from as_file_and_png(f"camera's table x {times}", encoded(clean, "JPEG", qtables=tables), clean, ANY)


def others(clean: Image.Image) -> Iterator[Case]:
    yield Case("clean", encoded(clean, "PNG"), clean)
    size = (clean.width * 3 // 4, clean.height * 3 // 4)
    smaller = clean.resize(size, Image.Resampling.BICUBIC)
    for quality in (20, 30, 60):
        resized = decoded(encoded(clean, "JPEG", quality=quality)).resize(size, Image.Resampling.BICUBIC)
        yield Case(f"q{quality}, scaled to 0.75, PNG", encoded(resized, "PNG"), smaller)
        yield Case(f"q{quality}, scaled to 0.75, q85", encoded(resized, "JPEG", quality=85), smaller, 85, suffix=".jpg")
    for quality in (30, 75):
        yield Case(f"WebP {quality}", encoded(clean, "WEBP", quality=quality), clean, suffix=".webp")


def draw_screen(seed: int) -> Image.Image:
    """A picture of windows and text, 800x600; half of them have everything at multiples of 8 pixels."""
    rng = np.random.default_rng(seed)
    dark = seed % 4 > 1
    screen = Image.new("RGB", (800, 600), (20, 22, 25) if dark else (240, 241, 243))
    draw, font = ImageDraw.Draw(screen), ImageFont.load_default(size=14)
    raster = 8 if seed % 2 else 1
    for _ in range(100):
        left, top = (raster * int(value) for value in rng.integers(600 // raster, size=2))
        colour = tuple(int(level) for level in rng.integers(30, 220, 3))
        draw.rectangle((left, top, left + 80, top + 23), fill=colour)
        draw.text((left, top + 24), "Files  Edit  View", fill=(210, 210, 210) if dark else (30, 31, 33), font=font)
    return screen


def draw_scan(seed: int) -> Image.Image:
    """A page of print as a scanner sees it: turned a little, soft, with the paper's grain."""
    rng = np.random.default_rng(seed)
    page = Image.new("L", (800, 1000), 235)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=16)
    for line in range(40):
        draw.text((60, 40 + 23 * line), "The quick brown fox jumps over the lazy dog, " * 2, fill=40, font=font)
    turned = page.rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC, fillcolor=235)
    soft = np.asarray(turned.filter(ImageFilter.GaussianBlur(0.8)), float)
    return Image.fromarray((soft + rng.normal(0, 4, soft.shape)).round().clip(0, 255).astype(np.uint8))


def drawn() -> Iterator[Case]:
    y, x = np.mgrid[:480, :640]
    for seed in range(NUM_DRAWN):
        slope = 120 + 60 * np.sin(x / (60 + 9 * seed)) + 50 * np.cos(y / (40 + 7 * seed))
        pictures = {"drawn screenshot": draw_screen(seed), "drawn scan of a page": draw_scan(seed),
                    "drawn gradient": Image.fromarray(slope.round().astype(np.uint8))}
        for name, picture in pictures.items():
            yield Case(name, encoded(picture, "PNG"), picture)


def restored(case: Case, restorer: JpegRestorer, folder: Path, quality: int | None) -> Result:
    path, target = folder / f"photo{case.suffix}", folder / f"result{case.suffix}"
    path.write_bytes(case.content)
    photo, clean = read_photo_file(path), np.asarray(case.clean)
    before = np.asarray(photo.eight_bit_image())
    begun = time.process_time()
    treatment = restorer(access_to_file(photo), photo.jpeg)
    seconds = time.process_time() - begun
    if not treatment.was_restored:
        return Result(case, treatment, 0.0, 0.0, 1.0, seconds)
    RestoreFile(restorer, quality)(path, target)
    before_dB = psnr(clean, before)
    gains = [psnr(clean, after) - before_dB for after in (np.asarray(photo.eight_bit_image()), read_photo(target))]
    return Result(case, treatment, *gains, target.stat().st_size / len(case.content), seconds)


def is_found(result: Result) -> bool:
    damage, (_, _, _, quality, offset, _) = result.treatment.damage, result.case
    is_right = damage is not None and (quality == ANY or abs(damage.quality - (quality or 0)) <= TOLERANCE)
    return damage is not None and is_right and damage.offset == offset


def row(name: str, results: list[Result]) -> list[object]:
    expected = results[0].case.quality
    share = "-" if expected is None else f"{mean(map(is_found, results)):.0%}"
    alarms = "-" if expected is not None else sum(
        result.treatment.damage is not None for result in results)
    done = [result for result in results if result.treatment.was_restored]
    gains = [f"{value:+.2f}" for each in ("gain", "gain_saved") for value in
             ((mean(getattr(result, each) for result in results), min(getattr(result, each) for result in results)))]
    growth = f"{mean(result.growth for result in done):.1f}" if done else "-"
    return [name, len(results), share, alarms, len(done), *gains, growth, f"{median(r.seconds for r in results):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what restore does to photos as they are found.")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="clean photos, or folders of them")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"weights (default: {DEFAULT_MODEL})")
    parser.add_argument("--quality", type=int, help="of the JPEGs written, 1..100, as for `restore`; then only JPEGs "
                        "saved once are looked at (default: all, with the qualities that `restore` chooses)")
    options = parser.parse_args()
    try:
        paths = photos_of(options.photos)
    except Failed as error:
        parser.error(str(error))
    restorer = JpegRestorer(WeightSelector(options.model, device_here()))
    photos = [Image.fromarray(read_photo(path)).convert("RGB") for path in paths]
    if options.quality:
        cases = chain.from_iterable(map(saved_once, photos))
    else:
        cases = chain(chain.from_iterable(chain(jpegs(photo), others(photo)) for photo in photos), drawn())
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in tqdm(cases, "photos", disable=None):
            results.setdefault(case.name, []).append(restored(case, restorer, Path(folder), options.quality))
    print(table(["photos", "number", "found", "false alarms", "restored", "gain", "smallest", "gain as saved",
                 "smallest", "size x", "CPU seconds"], map(row, results.keys(), results.values())))


if __name__ == "__main__":
    main()
