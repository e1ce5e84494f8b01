"""The page of `srcnn demo` in a real browser."""

import re
import sys

import numpy as np
import pytest
from browser import MAX_UPLOAD_BYTES, WAIT_SECONDS, chromium, demo_server
from messages import facts, says
from PIL import Image
from small import draw_photo
from uploads import BAD, MAKER, MODEL, write_jpeg

from srcnn.commands.demo import DETAIL_PIXELS
from srcnn.models.device import restoring_device
from srcnn.models.pretrained import FAMILY, WeightSelector
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import luma_l
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore_files import RestoreFile


def test_without_gradio_the_cure_is_named(monkeypatch):
    from srcnn.commands.demo import serve

    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr("os.environ", {})
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(ValueError, match=facts("pip install", "srcnn[demo]")):
        serve()


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio")
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    with demo_server(tmp_path_factory.mktemp("demo") / "temporary") as found:
        yield found


@pytest.fixture
def page(browser, address):
    """The page opened anew; at the end nothing may have left this machine, and nothing may have gone wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * WAIT_SECONDS)
    opened = context.new_page()
    requests, errors = [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    opened.locator("#restore").wait_for()
    yield opened
    context.close()
    elsewhere = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert len(requests) > 5 and not elsewhere and not errors


def expect(locator):
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=1000 * WAIT_SECONDS)
    return playwright_expect(locator)


def upload(page, path):
    """Drops a photo, in place of the one that is there."""
    clear = page.locator("#upload").get_by_label("Clear")
    if clear.count():
        expect(page.locator("#report")).not_to_contain_text("processing")  # a click before that is lost to gradio
        clear.click()
        expect(page.locator("#report")).not_to_contain_text(re.compile(r"\w"))
    page.locator("#upload input[type=file]").set_input_files(path)
    expect(page.locator("#report")).to_contain_text(path.name)


def set_number(page, box, value):
    field = page.locator(f"{box} input[type=number]")
    field.fill(str(value))
    field.press("Enter")


def restore(page):
    page.locator("#restore").click()
    expect(page.locator("#report")).to_contain_text("strength")
    expect(page.locator("#after img")).to_be_visible()


def download(page, folder):
    with page.expect_download() as found:
        page.locator("#download").click()
    path = folder / f"downloaded {found.value.suggested_filename}"
    found.value.save_as(path)
    return found.value.suggested_filename, path


@pytest.mark.parametrize("kind", ["drawn", pytest.param("from a camera", marks=pytest.mark.slow)])  # 3 megapixels
def test_a_photo_is_degraded_restored_compared_and_downloaded(page, tmp_path, request, kind):
    photo = write_jpeg(tmp_path / "drawn.jpg")
    if kind == "from a camera":
        photo = request.getfixturevalue("shared_data") / "train" / "camera_samples" / "Kyocera_FC-S3.jpg"
    upload(page, photo)
    page.get_by_label("Degrade it first").check()
    set_number(page, "#quality", 10)
    restore(page)

    with Image.open(photo) as opened:
        exif, clean = opened.getexif(), opened.convert("RGB")
    clean.save(tmp_path / "degraded.jpg", quality=10, subsampling="4:2:0")
    work = RestoreFile(JpegRestorer(WeightSelector(FAMILY, restoring_device())))
    work(tmp_path / "degraded.jpg", tmp_path / "restored.jpg")
    name, path = download(page, tmp_path)
    assert name == f"{photo.stem}-restored.jpg"
    with Image.open(path) as found, Image.open(tmp_path / "restored.jpg") as expected:
        assert np.array_equal(np.asarray(found), np.asarray(expected))
        assert exif[MODEL] and found.getexif()[MODEL] == exif[MODEL] and found.getexif()[MAKER] == exif[MAKER]
        gains = [psnr(luma_l(np.asarray(clean)), luma_l(np.asarray(image)))
                 for image in (Image.open(tmp_path / "degraded.jpg"), found)]
    said = page.locator("#report").inner_text()
    assert says(said, 10, "srcnn-915-q10") and gains[1] > gains[0] + 0.2
    assert re.search(rf"PSNR, dB\s+{gains[0]:.2f}\s+{gains[1]:.2f}\s+\+", said)


def test_the_slider_moves_and_a_click_shows_its_detail(page, tmp_path):
    upload(page, write_jpeg(tmp_path / "photo.jpg", quality=10))
    restore(page)

    whole = page.locator("#whole img").last
    before = whole.get_attribute("style")
    handle = page.locator("#whole [data-testid=slider] .inner, #whole [data-testid=slider]").first.bounding_box()
    middle = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 120, middle[1], steps=4)
    page.mouse.up()
    expect(whole).not_to_have_attribute("style", before)

    first = page.locator("#after img").get_attribute("src")
    overview = page.locator("#overview img")
    box = overview.evaluate("""image => {const [w, h] = [image.naturalWidth, image.naturalHeight], box =
        image.getBoundingClientRect(), s = Math.min(1, box.width / w, box.height / h);
        return [box.x + (box.width - w * s) / 2, box.y + (box.height - h * s) / 2, s]}""")
    overview.scroll_into_view_if_needed()
    overview.click(position={"x": box[2] * 300 + box[0] - overview.bounding_box()["x"],
                             "y": overview.bounding_box()["height"] / 2})
    expect(page.locator("#after img")).not_to_have_attribute("src", first)
    start = int(page.locator("#after img").get_attribute("src").rpartition("-")[2].removesuffix(".png"))
    assert start == pytest.approx(331 - DETAIL_PIXELS, abs=12)  # around column 300, moved inside the photo


@pytest.mark.slow
def test_two_photos_one_after_the_other(page, tmp_path):
    upload(page, write_jpeg(tmp_path / "first.jpg", quality=20))
    restore(page)
    assert download(page, tmp_path)[0] == "first-restored.jpg"

    second = tmp_path / "second & last.png"
    Image.fromarray(draw_photo(6, 149, 203)).save(second)
    upload(page, second)
    set_number(page, "#strength", 0)
    restore(page)
    name, path = download(page, tmp_path)
    with Image.open(path) as found:
        assert name.endswith("-restored.png") and np.array_equal(np.asarray(found), draw_photo(6, 149, 203))


@pytest.mark.slow
def test_what_is_no_photo_is_told_on_the_page_and_the_next_is_restored(page, tmp_path):
    for name, (make, reason) in BAD.items():
        upload(page, make(tmp_path / name))
        page.locator("#restore").click()
        expect(page.locator("#report .refused")).to_contain_text(name)
        expect(page.locator("#report .refused")).to_contain_text(reason)
        assert str(tmp_path) not in page.locator("#report").inner_text()
    upload(page, write_jpeg(tmp_path / "good.jpg", quality=30))
    restore(page)


@pytest.mark.slow
def test_a_file_above_the_limit_is_refused(page, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(MAX_UPLOAD_BYTES + 1))
    page.locator("#upload input[type=file]").set_input_files(large)
    expect(page.get_by_text("maximum")).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_of_it(page, tmp_path, scheme):
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme=scheme)
    upload(page, write_jpeg(tmp_path / "photo.jpg", quality=10))
    page.get_by_label("Degrade it first").check()
    restore(page)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 400
    for name in ("table", "#after img", "#download"):
        box = page.locator(f"#report {name}" if name == "table" else name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400
