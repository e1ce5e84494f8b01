"""The page of `srcnn demo` in a real browser."""

import zipfile

import numpy as np
import pytest
from browser import MAX_UPLOAD_BYTES, WAIT_SECONDS, chromium, demo_server
from PIL import Image
from small import draw_photo
from uploads import BAD, MODEL, wait_until, write_jpeg

from srcnn.models.device import restoring_device
from srcnn.models.pretrained import WeightSelector
from srcnn.models.weight_files import DEFAULT_MODEL
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore_files import RestoreFile


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    with demo_server(tmp_path_factory.mktemp("demo") / "temporary") as found:
        yield found


@pytest.fixture
def page(browser, address):
    """The page opened anew; at the end nothing may have left this machine, and the console is empty."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * WAIT_SECONDS)
    opened = context.new_page()
    opened.asked, errors = [], []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text))
    opened.goto(address)
    expect(opened.locator("#limits")).to_contain_text("megapixels")
    yield opened
    context.close()
    elsewhere = [url for url in opened.asked if not url.startswith((address, "data:", "blob:"))]
    assert len(opened.asked) > 5 and not elsewhere and not errors


def expect(locator):
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=1000 * WAIT_SECONDS)
    return playwright_expect(locator)


def upload(page, *paths):
    page.locator("#files").set_input_files(paths)
    expect(page.locator("body")).to_have_attribute("data-state", "ready")


def act(page, label="Restore"):
    """Presses the loud button, when it is as labelled."""
    expect(page.locator("#act")).to_have_text(label)
    page.locator("#act").click()


def restore(page, *paths, label="Restore"):
    upload(page, *paths)
    act(page, label)
    expect(page.locator("#act")).to_contain_text("Download")
    expect(page.locator("#frame")).to_be_visible()


def download(page, folder):
    with page.expect_download() as found:
        page.locator("#act").click()
    path = folder / f"downloaded {found.value.suggested_filename}"
    found.value.save_as(path)
    return found.value.suggested_filename, path


def drawn(page, canvas="#picture"):
    return page.locator(canvas).evaluate("canvas => canvas.toDataURL()")


def choose(page, name, value):
    page.locator(f"input[name={name}][value='{value}'] + span").click()


def test_the_example_is_restored_at_a_click_and_compared_by_keyboard(page):
    page.locator("#example").click()
    expect(page.locator("#act")).to_have_text("Download")
    expect(page.locator("#facts")).to_contain_text("quality 20")
    first, loupe = drawn(page), drawn(page, "#loupe canvas")
    divider = page.get_by_role("slider", name="Border between before")
    divider.focus()
    for _ in range(5):
        divider.press("ArrowLeft")
    assert drawn(page) != first and drawn(page, "#loupe canvas") == loupe
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    assert drawn(page, "#loupe canvas") != loupe


def test_strength_acts_at_once_and_the_download_is_that_of_the_command(page, tmp_path):
    photo = write_jpeg(tmp_path / "photo.jpg", quality=10)
    restore(page, photo)
    whole, num_asked = drawn(page), len(page.asked)
    page.get_by_label("Strength").fill("0")
    assert drawn(page) != whole and page.locator("#strength-value").inner_text() == "0 %"
    page.get_by_label("Strength").fill("100")
    assert drawn(page) == whole and len(page.asked) == num_asked, "no request was made"

    name, path = download(page, tmp_path)
    RestoreFile(JpegRestorer(WeightSelector(DEFAULT_MODEL, restoring_device())))(photo, tmp_path / "expected.jpg")
    assert name == "photo_restored.jpg" and path.read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    expect(page.locator("#said")).to_contain_text("Saved photo_restored.jpg")


def test_several_photos_are_listed_and_come_as_one_zip(page, tmp_path):
    first, second = (write_jpeg(tmp_path / name, quality=10) for name in ("first.jpg", "second <b>& last.jpg"))
    Image.fromarray(draw_photo(6, 149, 203)).save(tmp_path / "clean.png")
    (tmp_path / "notes.jpg").write_text("no photo")
    page.locator("#files").set_input_files([first, second, tmp_path / "clean.png", tmp_path / "notes.jpg"])
    act(page, "Restore 3 photos")
    expect(page.locator("#act")).to_have_text("Download 3 photos")
    said = page.locator("#list li").all_inner_texts()
    assert ["restored" in text for text in said] == [True, True, False, False]
    assert "left as it is" in said[2] and "notes.jpg" in said[3] and "not a photo" in said[3]
    page.locator("#list .entry").nth(2).click()
    expect(page.locator("#name")).to_have_text("clean.png")
    expect(page.locator("#list .entry").nth(2)).to_be_focused()
    page.get_by_label("Remove notes.jpg").click()
    expect(page.locator("#list li")).to_have_count(3)

    page.get_by_label("Save as").select_option("PNG")
    _, path = download(page, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["first.png", "second <b>& last.png", "clean.png"]
        with archive.open("first.png") as file, Image.open(file) as image:
            assert image.format == "PNG" and image.getexif()[MODEL] == "Model 7"


@pytest.mark.slow
def test_a_photo_is_enlarged_and_seen_in_every_magnification(page, tmp_path):
    upload(page, write_jpeg(tmp_path / "photo.jpg", quality=10, width=413, height=309))
    choose(page, "scale", 2)
    act(page)
    expect(page.locator("#said")).to_contain_text("826 × 618")
    for zoom in ("2", "4", "fit"):
        before = drawn(page)
        choose(page, "zoom", zoom)
        wait_until(lambda before=before: drawn(page) != before)
        expect(page.locator(".window")).to_be_visible(visible=zoom != "fit")
    choose(page, "zoom", 2)
    expect(page.locator(".window")).to_be_visible()
    page.locator("#whole").focus()
    place = page.locator(".window").get_attribute("style")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    expect(page.locator(".window")).not_to_have_attribute("style", place)
    choose(page, "scale", 1)
    expect(page.locator("#act")).to_have_text("Restore")
    assert download_after(page, tmp_path) == (413, 309)


def download_after(page, folder):
    act(page)
    expect(page.locator("#act")).to_have_text("Download")
    with Image.open(download(page, folder)[1]) as image:
        return image.size


@pytest.mark.slow
def test_a_good_photo_is_left_alone_and_a_damaged_copy_shows_the_difference(page, tmp_path):
    Image.fromarray(draw_photo(6, 349, 403)).save(tmp_path / "clean.png")
    upload(page, tmp_path / "clean.png")
    act(page)
    expect(page.locator("#said")).to_contain_text("left as it is")
    assert download(page, tmp_path)[1].read_bytes() == (tmp_path / "clean.png").read_bytes()
    page.locator("#degrade").click()
    expect(page.locator("#said")).to_contain_text("dB")
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#start")).to_be_visible()


def test_what_is_no_photo_is_told_on_the_page_and_the_next_is_restored(page, tmp_path):
    for name, (make, reason) in BAD.items():
        page.locator("#files").set_input_files(make(tmp_path / name))
        expect(page.get_by_role("alert")).to_contain_text(f"{name}: ")
        expect(page.get_by_role("alert")).to_contain_text(reason)
        assert str(tmp_path) not in page.get_by_role("alert").inner_text()
    (tmp_path / "large.png").write_bytes(bytes(MAX_UPLOAD_BYTES + 1))
    page.locator("#files").set_input_files(tmp_path / "large.png")
    expect(page.get_by_role("alert")).to_contain_text("4 MB")
    restore(page, write_jpeg(tmp_path / "good.jpg", quality=30))


@pytest.mark.slow
def test_a_result_that_would_be_too_large_is_told_and_a_smaller_one_is_made(page, tmp_path):
    Image.new("RGB", (5003, 4001), "teal").save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    choose(page, "scale", 2)
    act(page)
    expect(page.locator("#said")).to_contain_text("10006 × 8002")
    choose(page, "scale", 1)
    act(page)
    expect(page.locator("#said")).to_contain_text("left as it is")


@pytest.mark.slow
def test_restoring_can_be_stopped_and_begun_again(page, tmp_path):
    upload(page, write_jpeg(tmp_path / "large.jpg", quality=10, width=1203, height=805))
    act(page)
    page.get_by_role("button", name="Stop").click()
    act(page)
    expect(page.locator("#act")).to_have_text("Download")


def test_every_control_has_a_name_and_is_reached_by_the_keyboard(page, tmp_path):
    restore(page, write_jpeg(tmp_path / "photo.jpg", quality=10))
    tree = page.locator("body").aria_snapshot()
    for role, name in (("slider", "Border"), ("slider", "Strength"), ("radio", "1:1"), ("radio", "Same"),
                       ("combobox", "Save as"), ("combobox", "Method"), ("button", "Download"), ("img", "Loupe")):
        assert f'{role} "{name}' in tree
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"divider", "whole", "strength", "scale", "format", "network", "act", "zoom", "more", "again"} <= reached


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_a_narrow_screen_shows_all_of_it(page, tmp_path, scheme):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    restore(page, write_jpeg(tmp_path / "photo.jpg", quality=10))
    width, height = page.evaluate("[document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]")
    assert width <= 390 and height <= 2 * 844
    for name in ("#stage", "#act", "#strength"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844, name
    ground = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 384) == (scheme == "dark")


@pytest.mark.slow
def test_a_photo_from_a_camera_is_restored(page, shared_data, tmp_path):
    photo = shared_data / "train" / "camera_samples" / "Kyocera_FC-S3.jpg"
    with Image.open(photo) as opened:
        model, clean = opened.getexif()[MODEL], opened.copy()
        clean.save(tmp_path / "camera.jpg", quality=10, exif=opened.getexif())
    restore(page, tmp_path / "camera.jpg")
    with Image.open(download(page, tmp_path)[1]) as found, Image.open(tmp_path / "camera.jpg") as before:
        assert found.size == before.size and found.getexif()[MODEL] == model
        assert (np.asarray(found) != np.asarray(before)).any()
