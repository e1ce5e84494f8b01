"""docs/try, the page that restores photos: what it reads from files, and in Chromium with the runtime from npm."""

import base64
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
from browser import WAIT_SECONDS, chromium
from conftest import REPOSITORY
from PIL import Image
from small import draw_photo

from srcnn.__main__ import main
from srcnn.models.weights import load_model
from srcnn.photos.jpeg_quality import jpeg_save_of
from srcnn.restoration.restore import restore

PAGE = REPOSITORY / "docs" / "try"
NETWORK = "unet-jpeg"
ORIENTATION = 0x0112
READ = """
import { readFileSync } from "node:fs";
import { damageOf, readDamage, gridOffset } from "./jpeg.js";
const told = process.argv.slice(1).map((path) => readDamage(new Uint8Array(readFileSync(path))));
const shown = (damage) => damage && { ...damage, condition: [...damage.condition],
                                      offset: gridOffset(damage.orientation, 101, 83) };
console.log(JSON.stringify({ told: told.map(shown), tables: [1, 30, 49, 50, 75, 100].map((q) => shown(damageOf(q))) }));
"""


def in_node(*paths):
    if not shutil.which("node"):
        pytest.skip("no Node.js is installed")
    command = ["node", "--input-type=module", "-e", READ, *map(str, paths)]
    return json.loads(subprocess.run(command, cwd=PAGE, capture_output=True, check=True, timeout=60).stdout)


def as_jpeg(orientation=None, grey=False, size=(83, 101), big_endian=False, **settings):
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    exif.endian = ">" if big_endian else "<"
    image = Image.fromarray(draw_photo(3, size[1], size[0])).convert("L" if grey else "RGB")
    image.save(buffer := io.BytesIO(), "JPEG", exif=exif, **settings)
    return buffer.getvalue()


JPEGS = [
    {"quality": 1}, {"quality": 12}, {"quality": 50, "subsampling": "4:4:4"}, {"quality": 77, "subsampling": "4:2:2"},
    {"quality": 100}, {"quality": 30, "grey": True}, {"quality": 30, "progressive": True, "optimize": True},
    {"qtables": [[*range(1, 65)], [*range(65, 129)]]}, {"qtables": [[9] * 64]},
    *({"quality": 25, "orientation": turn, "big_endian": turn % 2 == 0} for turn in range(1, 9)),
]


def test_the_page_reads_the_damage_of_a_jpeg_as_the_package_does(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(len(JPEGS))]
    for path, settings in zip(paths, JPEGS, strict=True):
        path.write_bytes(as_jpeg(**settings))
    told = in_node(*paths)["told"]
    for path, settings, found in zip(paths, JPEGS, told, strict=True):
        orientation = settings.get("orientation", 1)
        with Image.open(path) as image:
            expected = jpeg_save_of(image).upright(orientation, 101, 83)
        assert (found["quality"], found["orientation"]) == (expected.quality, orientation), settings
        assert tuple(found["offset"]) == expected.offset, settings
        np.testing.assert_allclose(found["condition"], expected.condition, atol=1e-6, err_msg=str(settings))


def test_files_that_tell_no_damage_are_unknown_to_the_page(tmp_path):
    whole = as_jpeg(quality=20, orientation=6)
    Image.fromarray(draw_photo(3, 20, 20)).save(buffer := io.BytesIO(), "PNG")
    no_table = whole.replace(b"\xff\xdb", b"\xff\xec")
    cut = (whole[:length] for length in range(2, whole.index(b"\xff\xc0"), 7))  # before the size and the components
    contents = [b"", b"\xff\xd8", buffer.getvalue(), no_table, *cut]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(content)
    assert in_node(*(tmp_path / f"{number}" for number in range(len(contents))))["told"] == [None] * len(contents)


def test_the_page_has_libjpegs_tables(tmp_path):
    for found, quality in zip(in_node()["tables"], (1, 30, 49, 50, 75, 100), strict=True):
        with Image.open(io.BytesIO(as_jpeg(quality=quality))) as image:
            np.testing.assert_allclose(found["condition"], jpeg_save_of(image).condition, atol=1e-6)


def test_the_pages_tiles_suit_the_network():
    script, model = (PAGE / "restorer.js").read_text(), load_model(NETWORK)
    halo, tile = (int(re.search(rf"const {name} = (\d+);", script)[1]) for name in ("HALO", "TILE"))
    assert halo >= model.halo and halo % model.multiple == tile % model.multiple == 0


def test_the_page_is_small_and_names_nothing_of_elsewhere_but_the_runtime():
    files = [path for path in PAGE.iterdir() if path.name != "network.onnx"]
    assert sum(path.stat().st_size for path in files) < 150_000
    text = "".join(path.read_text() for path in files if path.suffix in (".html", ".css", ".js"))
    assert {address.split("/")[2] for address in re.findall(r"https?://[^\s\"'`;]+", text)} == {"cdn.jsdelivr.net"}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The folder of the runtime that the page names, from npm."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    name = re.search(r"npm/([\w-]+@[\d.]+)/dist/", (PAGE / "restorer.js").read_text())[1]
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run(["npm", "pack", name], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot get {name}: {done.stderr[-300:]}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, "gztar")
    return folder / "package" / "dist"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the page with its network, as `make try` makes it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    arguments = ["export", NETWORK, "--onnx", str(folder / "network.onnx"), "--compact", "--condition"]
    assert main(arguments) == 0
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def from_npm(context, runtime):
    """Gives the page the runtime in this folder."""
    context.route("https://cdn.jsdelivr.net/**", lambda route: route.fulfill(
        path=runtime / route.request.url.rpartition("/")[2], headers={"Access-Control-Allow-Origin": "*"}))


@pytest.fixture
def page(browser, site, runtime):
    """The page, opened anew; at the end nothing may have been sent, and nothing asked for but its parts."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    context.set_default_timeout(1000 * WAIT_SECONDS)
    from_npm(context, runtime)
    opened, requests, errors = context.new_page(), [], []
    opened.on("request", lambda request: requests.append((request.method, request.url.split("?")[0])))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(site)
    yield opened
    context.close()
    assert not errors
    assert requests and {method for method, _ in requests} == {"GET"}
    assert all(url.startswith((site, "blob:", "https://cdn.jsdelivr.net/npm/onnxruntime-web@")) for _, url in requests)


def expect(locator):
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=1000 * WAIT_SECONDS)
    return playwright_expect(locator)


def drop(page, path, state="done"):
    """Drags a file from elsewhere onto the page."""
    files = page.evaluate_handle("""([name, content]) => {
        const [files, bytes] = [new DataTransfer(), Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))];
        files.items.add(new File([bytes], name));
        return files;
    }""", [path.name, base64.b64encode(path.read_bytes()).decode()])
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("main", event, {"dataTransfer": files})
    page.locator(f"body[data-state={state}]").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"quality": 15, "size": (603, 441)}, {"quality": 30, "orientation": 6, "size": (83, 101)},
    {"quality": 30, "orientation": 3, "size": (83, 101)}, {"quality": 20, "grey": True},
], ids=str)
def test_a_photo_is_restored_as_by_the_package(page, tmp_path, settings):
    path = tmp_path / "holiday.2024.jpg"
    path.write_bytes(as_jpeg(**settings))
    drop(page, path)
    assert f"quality {settings['quality']} " in page.locator("#photo-quality").inner_text()
    with page.expect_download() as found:
        page.locator("#save-png").click()
    assert found.value.suggested_filename == "holiday.2024-restored.png"
    restored = np.asarray(Image.open(found.value.path()).convert("RGB"), int)
    expected = np.asarray(restore(path, NETWORK, exact=True).convert("RGB"), int)
    assert restored.shape == expected.shape
    difference = np.abs(restored - expected)
    # Its weights have 8 bits.
    assert difference.max() <= 4 and (difference > 2).mean() < 5e-4 and difference.mean() < 0.5


@pytest.mark.slow
def test_the_line_the_zoom_and_another_strength(page, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(as_jpeg(quality=15, size=(1203, 841)))
    drop(page, tmp_path / "photo.jpg")
    stage = page.locator("#stage")

    def split():
        return float(stage.evaluate("stage => getComputedStyle(stage).getPropertyValue('--split').replace('px', '')"))

    first, box = split(), page.locator(".divider").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 150, box["y"] + 100, steps=4)
    page.mouse.up()
    assert split() == pytest.approx(first - 150, abs=2)
    for key, share in (("Home", "0"), ("ArrowRight", "2"), ("End", "100")):
        page.locator(".divider").press(key)
        expect(page.locator(".divider")).to_have_attribute("aria-valuenow", share)

    for name, scale in (("4×", 4), ("1:1", 1), ("Fit", None)):
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("button", name=name)).to_have_attribute("aria-pressed", "true")
        shown = page.locator("#stage .after canvas").bounding_box()
        width = 1203 * scale if scale else stage.bounding_box()["height"] * 1203 / 841
        assert shown["width"] == pytest.approx(width, rel=0.01)
    page.get_by_role("button", name="4×").click()
    first, box = page.locator("#stage .after canvas").bounding_box(), stage.bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 170, steps=4)
    page.mouse.up()
    moved = page.locator("#stage .after canvas").bounding_box()
    assert (moved["x"] - first["x"], moved["y"] - first["y"]) == pytest.approx((40, -30), abs=1)

    saved = [download_of(page, "#save-jpeg")]
    page.get_by_text("Light", exact=True).click()
    page.locator("body[data-state=working]").wait_for()
    page.get_by_text("Heavy", exact=True).click()  # before the other has ended
    page.locator("body[data-state=working]").wait_for()
    page.locator("body[data-state=done]").wait_for()
    saved.append(download_of(page, "#save-jpeg"))
    assert saved[0].size == saved[1].size == (1203, 841) and saved[0].format == "JPEG"
    assert np.abs(np.asarray(saved[0], int) - np.asarray(saved[1], int)).max() > 3


def download_of(page, button):
    with page.expect_download() as found:
        page.locator(button).click()
    return Image.open(found.value.path())


@pytest.mark.slow
def test_what_is_no_photo_and_a_missing_runtime_are_said(page, tmp_path, runtime):
    (tmp_path / "notes.jpg").write_text("no photo")
    drop(page, tmp_path / "notes.jpg", "start")
    expect(page.locator("#status")).to_contain_text("notes.jpg")
    (tmp_path / "photo.jpg").write_bytes(as_jpeg(quality=15))
    page.context.unroute("https://cdn.jsdelivr.net/**")
    page.context.route("https://cdn.jsdelivr.net/**", lambda route: route.fulfill(
        body="alert(1)", headers={"Access-Control-Allow-Origin": "*"}))  # not what the page's hashes are of
    drop(page, tmp_path / "photo.jpg", "failed")
    expect(page.locator("#status")).to_contain_text("cdn.jsdelivr.net")
    page.context.unroute("https://cdn.jsdelivr.net/**")
    from_npm(page.context, runtime)
    page.get_by_role("button", name="Try again").click()
    page.locator("body[data-state=done]").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_of_it(page, scheme):
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme=scheme)
    for state in ("start", "done"):
        page.locator(f"body[data-state={state}]").wait_for()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
        if state == "start":
            page.locator("#example").click()
    for name in ("#stage", "#save-png", "#strength"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
