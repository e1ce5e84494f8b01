"""`srcnn demo`: a page in the browser where a photo is dropped, restored and compared. Needs gradio, but no network."""

from __future__ import annotations

import html
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from srcnn.compare import DETAIL_ZOOM, MAX_MEGAPIXELS, Shown, Wanted, describe, process, shipped_weights
from srcnn.pretrained import FAMILY

MAX_UPLOAD_BYTES = 100 << 20
FORGET_SECONDS = 3600  # what a visitor left is kept no longer
CSS = """
footer {display: none !important}
.detail img {image-rendering: pixelated; object-fit: none !important}
.report table, .report tr, .report td, .report th {border: 0 !important}
.report td, .report th {padding: .2em .9em .2em 0 !important; text-align: left; white-space: nowrap}
.report .refused {border-left: 4px solid #d92d20; padding: .4em .8em; font-weight: 600}
.report:has(.progress-level) .prose {visibility: hidden}
.report p {margin: .4em 0 !important; overflow-wrap: anywhere}
"""


def without_paths(error: BaseException, upload: str) -> str:
    """What is wrong, in HTML, with the file's name only."""
    said = str(error).replace(upload, Path(upload).name) or type(error).__name__
    return f'<p class="refused" role="alert">{html.escape(said)}</p>'


def build_page(gradio: ModuleType, folder: Path, max_megapixels: float) -> Any:
    """The page as gradio Blocks; what visitors restore lies below `folder` until they restore another or leave."""
    hidden = gradio.update(visible=False)

    def uploaded(upload: str | None) -> tuple[str, Any]:
        try:
            return (describe(Path(upload), max_megapixels) if upload else ""), hidden
        except (ValueError, OSError) as error:
            return without_paths(error, str(upload)), hidden

    def restore(
        upload: str | None, degrade: bool, quality: float, weights: str, strength: float, earlier: Shown | None,
        progress: Any = gradio.Progress(),
    ) -> tuple[Any, ...]:
        if earlier:
            earlier.forget()
        nothing = (hidden, *[gradio.skip()] * 5, None)
        if not upload:
            return '<p class="refused" role="alert">Choose a photo first.</p>', *nothing
        own = Path(tempfile.mkdtemp(dir=folder))
        try:
            wanted = Wanted(weights, strength, int(quality) if degrade else None)
            result = process(Path(upload), own, wanted, max_megapixels,
                             lambda done, tiles: progress(done / tiles, desc="Restoring"))
            shown = Shown(own, result)
            button = gradio.update(value=str(result.file), label=f"Download {result.file.name}")
            return result.report, gradio.update(visible=True), shown.whole(), *shown.detail(), button, shown
        except (ValueError, OSError, MemoryError) as error:
            shutil.rmtree(own, ignore_errors=True)
            return without_paths(error, upload), *nothing

    def clicked(shown: Shown | None, event: Any) -> Any:
        return shown.clicked(*event.index) if shown else [gradio.skip()] * 3

    clicked.__annotations__["event"] = gradio.SelectData  # by which gradio knows what to pass

    with gradio.Blocks(analytics_enabled=False, title="srcnn: restore a photo",
                       delete_cache=(FORGET_SECONDS // 6, FORGET_SECONDS)) as page:
        gradio.Markdown("# Restore a photo\nNothing leaves the machine that this page comes from.")
        state = gradio.State(None, time_to_live=FORGET_SECONDS, delete_callback=lambda shown: shown and shown.forget())
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


def inputs(gradio: ModuleType) -> tuple[Any, ...]:
    """The left column: the file, how to degrade it, how to restore it, the button, the report."""
    with gradio.Column(scale=1, min_width=300):
        upload = gradio.File(label="Photo (JPEG, PNG, WebP, TIFF, BMP)", elem_id="upload", height=180)
        degrade = gradio.Checkbox(label="Degrade it first, to try: then the original is known",
                                  elem_id="degrade")
        quality = gradio.Slider(1, 95, 20, step=1, label="JPEG quality to degrade with", elem_id="quality",
                                visible=False)
        weights = gradio.Dropdown([("fitted to the photo's JPEG quality", FAMILY), *shipped_weights()],
                                  value=FAMILY, label="Network", elem_id="network")
        strength = gradio.Slider(0, 1, 1, step=0.05, label="Strength", elem_id="strength",
                                 info="0 leaves the photo as it is")
        button = gradio.Button("Restore", variant="primary", elem_id="restore")
        report = gradio.HTML(elem_id="report", elem_classes="report", min_height=110)
    return upload, degrade, quality, weights, strength, button, report


def results(gradio: ModuleType) -> tuple[Any, ...]:
    """The right column, hidden until there is something: the whole, the download, the map, two details."""
    with gradio.Column(scale=2, min_width=340), gradio.Column(visible=False, elem_id="results") as shown:
        whole = gradio.ImageSlider(label="Before | after", elem_id="whole", interactive=False,
                                   buttons=["fullscreen"])
        download = gradio.DownloadButton("Download", elem_id="download", variant="primary")
        overview = gradio.Image(label="Click on a place to see its detail", elem_id="overview", buttons=[],
                                interactive=False, height=300)
        with gradio.Row():
            before, after = (gradio.Image(label=f"Detail {name}, {DETAIL_ZOOM} times as large", height=360,
                                          elem_id=name, elem_classes="detail", buttons=[], interactive=False,
                                          min_width=330) for name in ("before", "after"))
    return shown, whole, download, overview, before, after


def gradio_without_network(folder: str) -> ModuleType:
    """Imports gradio, told to send nothing anywhere, to reach itself without a proxy, and to keep its files below
    `folder`; parts of it read these variables only once.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_SHARE": "False",
                   "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": folder}
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
    try:
        import gradio
    except ImportError as error:
        raise ValueError('the page needs gradio 6: pip install "srcnn[demo]"') from error
    return gradio


def serve(
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
) -> None:
    """Shows the page until Ctrl-C or SIGTERM; then its temporary files are gone.

    Raises:
        ValueError: gradio is not installed.
        OSError: the port is taken.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="srcnn-demo-", ignore_cleanup_errors=True) as folder:
        gradio = gradio_without_network(folder)
        page = build_page(gradio, Path(folder), max_megapixels)
        plain = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        _, address, _ = page.launch(
            server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True,
            prevent_thread_lock=True, inline=False, footer_links=[], enable_monitoring=False, ssr_mode=False,
            mcp_server=False, pwa=False, max_file_size=max_upload_bytes, theme=plain, css=CSS)
        print(f"{address} shows the page; Ctrl-C ends it", flush=True)
        page.block_thread()
