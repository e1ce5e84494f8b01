"""`srcnn demo`: a web page that restores uploaded photos and compares them before and after. Needs no network."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from srcnn.models.device import restoring_device
from srcnn.models.pretrained import FAMILY, WeightSelector
from srcnn.models.weight_files import WEIGHTS
from srcnn.photos.jpeg_quality import quality_of
from srcnn.photos.metrics import psnr, ssim
from srcnn.photos.photo_file import PhotoFile, read_photo_file, write_photo_file
from srcnn.photos.reading import luma_l, open_image, over_white, suffix_of
from srcnn.restoration.figures import magnify, strongest_part
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore_files import RestoreFile
from srcnn.restoration.tiled_inference import Progress, RestoreOptions
from srcnn.runtime.errors import UserError

MAX_MEGAPIXELS = 50.0
PREVIEW_SIDE, MAP_SIDE = 1600, 640  # largest sides of the pictures that the browser is sent, pixels
DETAIL_PIXELS, DETAIL_ZOOM = 80, 4  # the magnified detail is as wide as a phone shows a picture
SSIM_ROWS = 64  # rows measured at a time: they stay in the cache, five times as fast as the whole photo
MAX_UPLOAD_BYTES = 100 << 20
EXPIRE_SECONDS = 3600  # after which the files of a visitor are deleted
CSS = """
footer {display: none !important}
.detail img {image-rendering: pixelated; object-fit: none !important}
.report table, .report tr, .report td, .report th {border: 0 !important}
.report td, .report th {padding: .2em .9em .2em 0 !important; text-align: left; white-space: nowrap}
.report .refused {border-left: 4px solid #d92d20; padding: .4em .8em; font-weight: 600}
.report:has(.progress-level) .prose {visibility: hidden}
.report p {margin: .4em 0 !important; overflow-wrap: anywhere}
"""


class DemoSession:
    """The result shown to one visitor, in files of a folder; the pixels are memory-mapped when a detail is shown.

    Attributes:
        file: the restored photo.
        report: what was done and measured, HTML.
    """

    def __init__(
        self, folder: Path, file: Path, before: np.ndarray, after: np.ndarray, profile: bytes | None, report: str
    ) -> None:
        """`before`, `after`: uint8 (H, W) or (H, W, 3), in the colour space of the ICC `profile`."""
        self.folder, self.file, self.profile, self.report = folder, file, profile, report
        self.pixels = [folder / f"{name}.npy" for name in ("before", "after")]
        for path, pixels in zip(self.pixels, (before, after), strict=True):
            np.save(path, pixels)

    def whole(self) -> tuple[str, str]:
        """Files of two pictures for the slider: the photo before and after."""
        before, after = (preview(np.load(path, mmap_mode="r")) for path in self.pixels)
        return self.save(before, "whole-before"), self.save(after, "whole-after")

    def detail(self, middle: tuple[int, int] | None = None) -> tuple[str, str, str]:
        """Files of the map and of a detail before and after: around a pixel (row, column), or where it changed most."""
        before, after = (np.load(path, mmap_mode="r") for path in self.pixels)
        part = detail_at(middle or changed_most(before, after), after.shape)
        position = f"{part[0].start}-{part[1].start}"
        magnified = [self.save(Image.fromarray(magnify(pixels[part], DETAIL_ZOOM)), f"{name}-{position}")
                     for name, pixels in (("before", before), ("after", after))]
        return self.save(map_of(after, part), f"map-{position}"), magnified[0], magnified[1]

    def detail_on_map(self, column: float, row: float) -> tuple[str, str, str]:
        """As `detail`, around a pixel of the map."""
        height, width = np.load(self.pixels[1], mmap_mode="r").shape[:2]
        factor = max(1.0, max(height, width) / MAP_SIDE)
        return self.detail((int(row * factor), int(column * factor)))

    def save(self, image: Image.Image, name: str) -> str:
        """Writes a PNG with the photo's ICC profile, for the browser to show its colours."""
        path = self.folder / f"{name}.png"
        image.save(path, compress_level=1, icc_profile=self.profile)
        return str(path)

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def shipped_weights() -> list[str]:
    """The names of the shipped weights that restore JPEGs; the names of those that enlarge end in x2, x3, x4."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors") if not re.search(r"-x\d+$", path.stem))


def describe(upload: Path) -> str:
    """The name, size, format and JPEG quality of an uploaded photo, HTML. Raises PhotoRefused."""
    with open_image(upload, MAX_MEGAPIXELS) as image:
        quality = quality_of(image)
        kind = "JPEG" if image.format == "MPO" else image.format
        saved = f", saved with quality {quality} or so" if quality else ""
        size = f"{image.width} × {image.height} pixels, {kind}{saved}, {file_size(upload)}"
    return f"<p>{html.escape(upload.name)}: {size}</p>"


def file_size(path: Path) -> str:
    """In the units that gradio shows for an upload."""
    num_kilobytes = path.stat().st_size / 1024
    return f"{num_kilobytes:.1f} KB" if num_kilobytes < 1024 else f"{num_kilobytes / 1024:.1f} MB"


def process(
    upload: Path,
    folder: Path,
    weights: str = FAMILY,
    strength: float = 1.0,
    degrade_quality: int | None = None,
    on_progress: Progress | None = None,
) -> DemoSession:
    """Restores an uploaded photo into a file in `folder`.

    Args:
        weights: name of shipped weights, or of a family of them, chosen from by the photo's JPEG quality.
        strength: share of the network's change that is applied, 0..1.
        degrade_quality: JPEG quality, 1..100, to degrade the photo with first; None: not degraded.

    Raises:
        PhotoRefused: it is no picture, damaged, animated or too large.
        ValueError, OSError: the result cannot be written.
    """
    original = read_photo_file(upload, MAX_MEGAPIXELS)
    files = {"original": upload}
    notes: list[str] = []
    if degrade_quality is not None:
        files["degraded"] = folder / f"{upload.stem}-degraded.jpg"
        notes += original.notes
        notes += write_photo_file(files["degraded"], original, degrade_quality, subsampling="4:2:0")
    source, target = files.get("degraded", upload), folder / f"{upload.stem}-restored{suffix_of(upload)}"
    files["restored"] = target
    work = RestoreFile(JpegRestorer(WeightSelector(weights, restoring_device()), RestoreOptions(strength=strength)))
    notes += work(source, target, on_progress)
    before, after = (visible(read_photo_file(path)) for path in (source, target))
    report = [f"<p>{html.escape(', '.join([*notes, f'strength {strength:g}']))}.</p>"]
    if "degraded" in files:
        report.append(score_table(visible(original), before, after))
    report.append(f"<p>File: {', '.join(f'{name} {file_size(path)}' for name, path in files.items())}.</p>")
    if (side := max(after.shape[:2])) > PREVIEW_SIDE:
        report.append(f"<p>The photo is shown at {100 * PREVIEW_SIDE / side:.0f} % of its size;"
                      " details and the download have the full size.</p>")
    return DemoSession(folder, target, before, after, original.metadata.icc_profile, "".join(report))


def visible(photo: PhotoFile) -> np.ndarray:
    """What a viewer shows: uint8 (H, W) or (H, W, 3), over white where it is transparent."""
    return np.asarray(over_white(photo.eight_bit_image()))


def score_table(clean: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """PSNR and SSIM of the luma (Pillow's L) of both photos against the clean one, an HTML table."""
    luma, *lumas = (luma_l(pixels) for pixels in (clean, before, after))
    scores = [("PSNR, dB", [psnr(luma, other) for other in lumas], 2)]
    if min(luma.shape) >= 11:
        scores.append(("SSIM", [mean_ssim(luma, other) for other in lumas], 4))
    rows = "".join(
        f"<tr><td>{name}</td><td>{first:.{decimals}f}</td><td>{second:.{decimals}f}</td>"
        f"<td>{second - first:+.{decimals}f}</td></tr>" for name, (first, second), decimals in scores)
    return f"<table><tr><th>Luma</th><th>degraded</th><th>restored</th><th>gain</th></tr>{rows}</table>"


def mean_ssim(clean: np.ndarray, other: np.ndarray) -> float:
    """The mean SSIM of two greyscale uint8 photos (H, W), computed in strips of rows, which bound the memory."""
    total, num_rows = 0.0, clean.shape[0] - 10
    for top in range(0, num_rows, SSIM_ROWS):
        bottom = min(num_rows, top + SSIM_ROWS)
        strips = [torch.from_numpy(photo[top : bottom + 10].copy())[None, None] / 255.0 for photo in (clean, other)]
        total += (bottom - top) * float(ssim(*strips))
    return total / num_rows


def changed_most(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """The middle (row, column) of the detail, among those of a grid, whose luma changed most."""
    change = np.abs(luma_l(after).astype(np.int16) - luma_l(before))
    rows, columns = strongest_part(change, DETAIL_PIXELS)
    return (rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2


def detail_at(middle: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the detail around a pixel (row, column), moved to lie within the photo."""

    def span(center: int, side: int) -> slice:
        start = max(0, min(center - DETAIL_PIXELS // 2, side - DETAIL_PIXELS))
        return slice(start, min(start + DETAIL_PIXELS, side))

    return span(middle[0], shape[0]), span(middle[1], shape[1])


def preview(pixels: np.ndarray, side: int = PREVIEW_SIDE) -> Image.Image:
    """The photo in RGB, reduced to sides of at most `side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image.convert("RGB")


def map_of(pixels: np.ndarray, detail: tuple[slice, slice]) -> Image.Image:
    """The photo, reduced, with a frame around the detail."""
    small = preview(pixels, MAP_SIDE)
    factor, (rows, columns) = small.width / pixels.shape[1], detail
    left, right, top, bottom = (round(edge * factor) for part in (columns, rows) for edge in (part.start, part.stop))
    draw = ImageDraw.Draw(small)
    for margin, width, colour in ((3, 4, "black"), (2, 2, "yellow")):
        draw.rectangle([left - margin, top - margin, right + margin, bottom + margin], outline=colour, width=width)
    return small


def error_html(error: BaseException, upload: str) -> str:
    """The message of an error, HTML, in which the upload has its name instead of its path."""
    message = str(error).replace(upload, Path(upload).name) or type(error).__name__
    return f'<p class="refused" role="alert">{html.escape(message)}</p>'


def build_page(gradio: ModuleType, folder: Path) -> Any:
    """The page as gradio Blocks. A visitor's files lie below `folder` until the next photo, or until they leave."""
    hidden = gradio.update(visible=False)

    def uploaded(upload: str | None) -> tuple[str, Any]:
        try:
            return (describe(Path(upload)) if upload else ""), hidden
        except (ValueError, OSError) as error:
            return error_html(error, str(upload)), hidden

    def restore(
        upload: str | None, degrade: bool, quality: float, weights: str, strength: float, earlier: DemoSession | None,
        progress: Any = gradio.Progress(),
    ) -> tuple[Any, ...]:
        delete_session(earlier)
        nothing = (hidden, *[gradio.skip()] * 5, None)
        if not upload:
            return '<p class="refused" role="alert">Choose a photo first.</p>', *nothing
        own = Path(tempfile.mkdtemp(dir=folder))
        try:
            session = process(Path(upload), own, weights, strength, int(quality) if degrade else None,
                              lambda done, tiles: progress(done / tiles, desc="Restoring"))
            button = gradio.update(value=str(session.file), label=f"Download {session.file.name}")
            return session.report, gradio.update(visible=True), session.whole(), *session.detail(), button, session
        except (ValueError, OSError, MemoryError) as error:
            shutil.rmtree(own, ignore_errors=True)
            return error_html(error, upload), *nothing

    def clicked(session: DemoSession | None, event: Any) -> Any:
        return session.detail_on_map(*event.index) if session else [gradio.skip()] * 3

    clicked.__annotations__["event"] = gradio.SelectData  # tells gradio to pass it; the module is imported late

    with gradio.Blocks(analytics_enabled=False, title="srcnn: restore a photo",
                       delete_cache=(EXPIRE_SECONDS // 6, EXPIRE_SECONDS)) as page:
        gradio.Markdown("# Restore a photo\nNothing leaves the machine that this page comes from.")
        state = gradio.State(None, time_to_live=EXPIRE_SECONDS,
                             delete_callback=delete_session)
        with gradio.Row():
            upload, degrade, quality, weights, strength, button, report = inputs(gradio)
            column, whole, download, overview, before, after = results(gradio)
        degrade.change(lambda on: gradio.update(visible=on), degrade, quality, show_progress="hidden")
        upload.change(uploaded, upload, [report, column], show_progress="hidden")
        button.click(restore, [upload, degrade, quality, weights, strength, state],
                     [report, column, whole, overview, before, after, download, state],
                     concurrency_limit=1, show_progress_on=report)
        overview.select(clicked, state, [overview, before, after], show_progress="hidden")
    return page.queue(max_size=16)


def delete_session(session: DemoSession | None) -> None:
    if session:
        session.delete()


def inputs(gradio: ModuleType) -> tuple[Any, ...]:
    """The left column: upload, settings of degradation and restoration, button, report."""
    with gradio.Column(scale=1, min_width=300):
        upload = gradio.File(label="Photo", elem_id="upload", height=180)
        degrade = gradio.Checkbox(label="Degrade it first, to measure against the original", elem_id="degrade")
        quality = gradio.Slider(1, 95, 20, step=1, label="JPEG quality to degrade with", elem_id="quality",
                                visible=False)
        weights = gradio.Dropdown([("chosen by the photo's JPEG quality", FAMILY), *shipped_weights()],
                                  value=FAMILY, label="Network", elem_id="network")
        strength = gradio.Slider(0, 1, 1, step=0.05, label="Strength", elem_id="strength",
                                 info="0 leaves the photo as it is")
        button = gradio.Button("Restore", variant="primary", elem_id="restore")
        report = gradio.HTML(elem_id="report", elem_classes="report", min_height=110)
    return upload, degrade, quality, weights, strength, button, report


def results(gradio: ModuleType) -> tuple[Any, ...]:
    """The right column, hidden until a photo is restored: slider, download, map, two details."""
    with gradio.Column(scale=2, min_width=340), gradio.Column(visible=False, elem_id="results") as shown:
        whole = gradio.ImageSlider(label="Before | after", elem_id="whole", interactive=False,
                                   buttons=["fullscreen"])
        download = gradio.DownloadButton("Download", elem_id="download", variant="primary")
        overview = gradio.Image(label="Click to see the detail there", elem_id="overview", buttons=[],
                                interactive=False, height=300)
        with gradio.Row():
            before, after = (gradio.Image(label=f"Detail {name}, {DETAIL_ZOOM} times as large", height=360,
                                          elem_id=name, elem_classes="detail", buttons=[], interactive=False,
                                          min_width=330) for name in ("before", "after"))
    return shown, whole, download, overview, before, after


def gradio_without_network(folder: str) -> ModuleType:
    """Imports gradio with its telemetry off, no proxy for its own address, and its files below `folder`.

    The variables are set before, as some are read by the import.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False",
                   "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": folder}
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
    try:
        import gradio
    except ImportError as error:
        raise UserError('srcnn demo needs gradio 6: pip install "srcnn[demo]"') from error
    return gradio


def serve(
    host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False, max_upload_bytes: int = MAX_UPLOAD_BYTES
) -> None:
    """Serves the page until Ctrl-C or SIGTERM, then removes its temporary files.

    Raises:
        ValueError: gradio is not installed.
        OSError: the port is in use.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="srcnn-demo-", ignore_cleanup_errors=True) as folder:
        gradio = gradio_without_network(folder)
        page = build_page(gradio, Path(folder))
        plain = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        _, address, _ = page.launch(
            server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True,
            prevent_thread_lock=True, inline=False, footer_links=[], enable_monitoring=False, ssr_mode=False,
            mcp_server=False, pwa=False, max_file_size=max_upload_bytes, theme=plain, css=CSS)
        print(f"serving at {address}; stop with Ctrl-C", flush=True)
        page.block_thread()
