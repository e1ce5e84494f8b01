"""A photo file degraded on request, restored, and compared: numbers, previews, details. What `srcnn demo` shows."""

from __future__ import annotations

import html
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from srcnn.apply import Progress, Treatment
from srcnn.canvas import Canvas, read_canvas, save_canvas
from srcnn.device import device_here
from srcnn.jpeg_quality import quality_of
from srcnn.metrics import psnr, ssim
from srcnn.photo import Photo, eight_bits, luma_l, open_image, over_white, suffix_of
from srcnn.photo_files import Restoring
from srcnn.pretrained import FAMILY, WeightSelector
from srcnn.tiles import cut, grid
from srcnn.weight_files import WEIGHTS

MAX_MEGAPIXELS = 50.0
PREVIEW_SIDE = 1600  # pixels of the longer side that the browser is sent at most
MAP_SIDE = 640
DETAIL_PIXELS, DETAIL_ZOOM = 80, 4  # together as wide as the screen of a phone lets a picture be
SSIM_ROWS = 64  # of a photo measured at a time: they stay in the cache, five times as fast as the whole


@dataclass(frozen=True)
class Wanted:
    """What was chosen on the page.

    Attributes:
        weights: their name, or a family of which the photo's JPEG quality picks one.
        strength: share of the network's change, 0..1.
        degrade_quality: of the JPEG that the photo is made before, 1..100; None: it is restored as it came.
    """

    weights: str = FAMILY
    strength: float = 1.0
    degrade_quality: int | None = None


@dataclass(frozen=True)
class Result:
    """What came of it: the restored file, uint8 pixels as a viewer shows them, and a report in HTML."""

    file: Path
    before: np.ndarray
    after: np.ndarray
    profile: bytes | None
    report: str


def shipped_weights() -> list[str]:
    """The names of the shipped networks that mend JPEGs; those that enlarge end in x2, x3, x4."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors") if not re.search(r"-x\d+$", path.stem))


def restore_into(given: Path, target: Path, wanted: Wanted, on_progress: Progress | None) -> tuple[str, ...]:
    """Restores a file into another with its metadata; returns notes: what was done, what was not kept."""
    networks = WeightSelector(wanted.weights, device_here())
    return Restoring(networks, Treatment(strength=wanted.strength))(given, target, on_progress)


def describe(upload: Path, max_megapixels: float = MAX_MEGAPIXELS) -> str:
    """A line in HTML on a photo that was uploaded, from its header. Raises PhotoRefused."""
    with open_image(upload, max_megapixels) as image:
        quality = quality_of(image)
        kind = "JPEG" if image.format == "MPO" else image.format
        saved = f", saved with quality {quality} or about" if quality else ""
        size = f"{image.width} × {image.height} pixels, {kind}{saved}, {file_size(upload)}"
    return f"<p>{html.escape(upload.name)}: {size}</p>"


def file_size(path: Path) -> str:
    """In the units of the page's own line on the upload."""
    num_kilobytes = path.stat().st_size / 1024
    return f"{num_kilobytes:.1f} KB" if num_kilobytes < 1024 else f"{num_kilobytes / 1024:.1f} MB"


def process(
    upload: Path,
    folder: Path,
    wanted: Wanted,
    max_megapixels: float = MAX_MEGAPIXELS,
    on_progress: Progress | None = None,
) -> Result:
    """Degrades an uploaded photo where that is wanted and restores it, into a file of its name in `folder`.

    Raises:
        PhotoRefused: no picture, damaged, animated, too large; ValueError, OSError: it cannot be written.
    """
    original = read_canvas(upload, max_megapixels)
    given = upload
    notes: list[str] = []
    if wanted.degrade_quality is not None:
        given = folder / f"{upload.stem}-degraded.jpg"
        notes += save_canvas(given, original, wanted.degrade_quality, subsampling="4:2:0")
    target = folder / f"{upload.stem}-restored{suffix_of(upload)}"
    notes += restore_into(given, target, wanted, on_progress)
    before, after = (visible(read_canvas(path)) for path in (given, target))
    files = {"original": upload} | ({"degraded": given} if given != upload else {}) | {"restored": target}
    report = [f"<p>{html.escape(', '.join([*notes, f'strength {wanted.strength:g}']))}.</p>"]
    if given != upload:
        report.append(numbers(visible(original), before, after))
    report.append(f"<p>File: {', '.join(f'{name} {file_size(path)}' for name, path in files.items())}.</p>")
    if (side := max(after.shape[:2])) > PREVIEW_SIDE:
        report.append(f"<p>The photo is shown at {100 * PREVIEW_SIDE / side:.0f} % of its size;"
                      " details and the download are in full size.</p>")
    return Result(target, before, after, original.metadata.icc_profile, "".join(report))


def visible(canvas: Canvas) -> np.ndarray:
    """What a viewer shows: uint8 (H, W) or (H, W, 3), over white where it is transparent."""
    levels = canvas.read_all((slice(0, canvas.size[0]), slice(0, canvas.size[1])))
    if levels.dtype != np.uint8:
        levels = eight_bits(levels)
    if not canvas.has_alpha:
        return levels
    return over_white(Photo(levels[..., 0] if canvas.is_grey else levels[..., :3], levels[..., -1]))


def numbers(clean: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """A table in HTML of both photos beside the clean one: PSNR and SSIM of the luma (Pillow's L)."""
    luma, *lumas = (luma_l(pixels) for pixels in (clean, before, after))
    rows = [("PSNR, dB", [psnr(luma, other) for other in lumas], 2)]
    if min(luma.shape) >= 11:
        rows.append(("SSIM", [mean_ssim(luma, other) for other in lumas], 4))
    cells = "".join(
        f"<tr><td>{name}</td><td>{first:.{places}f}</td><td>{second:.{places}f}</td>"
        f"<td>{second - first:+.{places}f}</td></tr>" for name, (first, second), places in rows)
    return f"<table><tr><th>Luma</th><th>degraded</th><th>restored</th><th>gain</th></tr>{cells}</table>"


def mean_ssim(clean: np.ndarray, other: np.ndarray) -> float:
    """SSIM of two greyscale uint8 photos, the mean over all windows; strips of rows bound the memory."""
    total, num_rows = 0.0, clean.shape[0] - 10
    for top in range(0, num_rows, SSIM_ROWS):
        bottom = min(num_rows, top + SSIM_ROWS)
        strips = [torch.from_numpy(photo[top : bottom + 10].copy())[None, None] / 255.0 for photo in (clean, other)]
        total += (bottom - top) * float(ssim(*strips))
    return total / num_rows


def changed_most(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """The middle (row, column) of that detail, of a grid of them, whose luma changed most."""
    height, width = before.shape[:2]
    rows, columns = grid(height, width, DETAIL_PIXELS)
    if not rows * columns:
        return height // 2, width // 2
    change = np.abs(luma_l(after).astype(np.int16) - luma_l(before))
    row, column = divmod(int(cut(change, DETAIL_PIXELS).sum((1, 2), np.int64).argmax()), columns)
    return row * DETAIL_PIXELS + DETAIL_PIXELS // 2, column * DETAIL_PIXELS + DETAIL_PIXELS // 2


def detail_at(middle: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the detail around a pixel, moved so that it lies in the photo."""
    starts = [max(0, min(place - DETAIL_PIXELS // 2, side - DETAIL_PIXELS))
              for place, side in zip(middle, shape[:2], strict=True)]
    rows, columns = (slice(start, min(start + DETAIL_PIXELS, side))
                     for start, side in zip(starts, shape[:2], strict=True))
    return rows, columns


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Every pixel as a square."""
    return pixels.repeat(DETAIL_ZOOM, 0).repeat(DETAIL_ZOOM, 1)


def preview(pixels: np.ndarray, side: int = PREVIEW_SIDE) -> Image.Image:
    """RGB, reduced to at most `side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image.convert("RGB")


def map_of(pixels: np.ndarray, detail: tuple[slice, slice]) -> Image.Image:
    """The photo, small, with a frame around the detail."""
    small = preview(pixels, MAP_SIDE)
    factor = small.width / pixels.shape[1]
    corners = [round(place * factor) for place in
               (detail[1].start, detail[0].start, detail[1].stop, detail[0].stop)]
    draw = ImageDraw.Draw(small)
    for margin, colour in ((0, "black"), (1, "yellow"), (2, "yellow"), (3, "black")):
        draw.rectangle([corners[0] - margin, corners[1] - margin, corners[2] + margin, corners[3] + margin],
                       outline=colour)
    return small


class Shown:
    """What one visitor sees, in a folder of files: the pixels are mapped to memory when a detail is wanted."""

    def __init__(self, folder: Path, result: Result) -> None:
        self.folder, self.profile = folder, result.profile
        self.pixels = [folder / f"{name}.npy" for name in ("before", "after")]
        for path, pixels in zip(self.pixels, (result.before, result.after), strict=True):
            np.save(path, pixels)

    def whole(self) -> tuple[str, str]:
        """Two pictures for the slider."""
        before, after = (preview(np.load(path, mmap_mode="r")) for path in self.pixels)
        return self.save(before, "whole-before"), self.save(after, "whole-after")

    def detail(self, middle: tuple[int, int] | None = None) -> tuple[str, str, str]:
        """The map, and a detail before and after: around a pixel (row, column), or where it changed most."""
        before, after = (np.load(path, mmap_mode="r") for path in self.pixels)
        part = detail_at(middle or changed_most(before, after), after.shape)
        place = f"{part[0].start}-{part[1].start}"
        large = [self.save(Image.fromarray(enlarged(pixels[part])), f"{name}-{place}")
                 for name, pixels in (("before", before), ("after", after))]
        return self.save(map_of(after, part), f"map-{place}"), large[0], large[1]

    def clicked(self, column: float, row: float) -> tuple[str, str, str]:
        """The detail around a pixel of the map."""
        height, width = np.load(self.pixels[1], mmap_mode="r").shape[:2]
        factor = max(1.0, max(height, width) / MAP_SIDE)
        return self.detail((int(row * factor), int(column * factor)))

    def save(self, image: Image.Image, name: str) -> str:
        """PNG, with the photo's profile, for the browser to show the colours as they are meant."""
        path = self.folder / f"{name}.png"
        image.save(path, compress_level=1, icc_profile=self.profile)
        return str(path)

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
