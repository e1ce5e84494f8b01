"""Damage is found in the pixels and undone on its own grid; what has none is left alone."""

import io

import numpy as np
import pytest
import torch
from messages import says
from PIL import Image
from small import draw_photo

from srcnn import restore, upscale
from srcnn.__main__ import main
from srcnn.models.pretrained import FAMILY, GOOD_QUALITY_CONDITIONED, WeightSelector
from srcnn.photos.jpeg_quality import TRANSPOSED, condition_of_quality, jpeg_save, jpeg_save_of
from srcnn.photos.metrics import psnr
from srcnn.photos.photo_file import read_photo_file
from srcnn.photos.reading import TURNS
from srcnn.restoration.jpeg_damage import JpegRestorer, find_damage
from srcnn.restoration.restore import access_to_array, access_to_file, restore_array
from srcnn.restoration.restore_files import jpeg_quality_for
from srcnn.restoration.tiled_inference import RestoreOptions


@pytest.fixture(scope="module")
def clean():
    """A drawn photo with the noise of a camera."""
    noise = np.random.default_rng(0).normal(0, 6, (360, 480, 3))
    return (40 + 0.6 * draw_photo(1, 360, 480) + noise).round().clip(0, 255).astype(np.uint8)


def saved(pixels, quality, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def decoded(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_former_jpeg_is_found_in_pixels_of_any_type(clean, dtype):
    pixels = decoded(saved(clean, 20))
    pixels = {"uint8": pixels, "uint16": pixels.astype(np.uint16) * 257,
              "float32": pixels.astype(np.float32) / 255}[np.dtype(dtype).name]
    damage = find_damage(access_to_array(pixels), None)
    assert damage.quality == 20 and damage.offset == (0, 0)
    assert np.array_equal(damage.condition, jpeg_save(20).condition)


def test_large_photos_are_judged_by_their_middle(monkeypatch, clean):
    monkeypatch.setattr("srcnn.restoration.jpeg_damage.MAX_SAMPLE_SIDE", 203)
    assert find_damage(access_to_array(decoded(saved(clean, 20))), None).offset == (0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_grid_and_tables_of_a_turned_photo_are_turned(tmp_path, clean, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    tables = [[8 + row + 5 * column for row in range(8) for column in range(8)]] * 2
    (tmp_path / "a.jpg").write_bytes(saved(clean[:221, :307], 50, qtables=tables, exif=exif))
    photo = read_photo_file(tmp_path / "a.jpg")
    by_pixels = find_damage(access_to_file(photo), None)
    assert photo.jpeg.offset == by_pixels.offset
    assert np.median(np.abs(photo.jpeg.luma_steps - by_pixels.luma_steps)[:4, :4]) == 0
    table = np.reshape(tables[0], (8, 8))
    turned = table.T if orientation >= 5 else table
    told = condition_of_quality(photo.jpeg.quality).reshape(1, -1)
    upright = np.concatenate([told[:, :2], *(told[:, 2:].reshape(2, 10)[:, TRANSPOSED])], None)
    assert np.array_equal(photo.jpeg.condition, upright if orientation >= 5 else told[0])
    assert np.array_equal(photo.jpeg.luma_steps, turned)
    assert (TURNS.get(orientation) is None) == (orientation == 1)


def test_what_was_done_to_a_photo_is_told(tmp_path, capsys, clean):
    once = decoded(saved(clean, 20))
    twice = saved(decoded(saved(clean, 30)), 85)
    files = {"once.jpg": saved(clean, 20), "twice.jpg": twice, "good.jpg": saved(clean, 95)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, pixels in {"former.png": once, "clean.png": clean}.items():
        Image.fromarray(pixels).save(tmp_path / name)
    assert main(["restore", str(tmp_path), "-o", str(tmp_path / "out"), "--model", FAMILY]) == 0
    told = dict(line.split("/out/")[1].split(" (") for line in capsys.readouterr().out.splitlines())
    assert says(told["once.jpg"], "JPEG 20", "srcnn-915-q20") and says(told["former.png"], "once a JPEG 20", "q20")
    assert says(told["twice.jpg"], "JPEG 30, saved again at 85", "srcnn-915-q30")
    assert says(told["good.jpg"], "JPEG 95", "good") and says(told["clean.png"], "no JPEG damage", "copied")
    for name in ("good.jpg", "clean.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    for name, quality in {"once.jpg": jpeg_quality_for(20), "twice.jpg": jpeg_quality_for(30)}.items():
        assert jpeg_save_of(Image.open(tmp_path / "out" / name)).quality == quality


def test_photos_saved_twice_gain_what_those_saved_once_do(tmp_path, shared_data):
    clean = np.asarray(Image.open(shared_data / "val" / "city20" / "033H.png").convert("RGB"))
    once = decoded(saved(clean, 20))
    for pixels, file in ((once, None), (decoded(saved(once, 95)), jpeg_save(95)), (decoded(saved(once, 75)), None)):
        restored = pixels.copy()
        JpegRestorer(WeightSelector(FAMILY, torch.device("cpu")))(access_to_array(restored), file)
        assert psnr(clean, restored) > psnr(clean, pixels) + 0.8


def test_screens_and_other_formats_are_left_alone(clean):
    buffer = io.BytesIO()
    Image.fromarray(clean).save(buffer, "WEBP", quality=75)
    for pixels in (clean, clean[..., 1], decoded(buffer.getvalue())):
        assert np.array_equal(restore(pixels), pixels)
        assert not np.array_equal(restore(pixels, force=True), pixels)
    tensor = torch.from_numpy(clean.copy()).permute(2, 0, 1)
    assert torch.equal(restore(tensor), tensor)


def test_a_network_of_ones_own_restores_always_and_a_conditioned_one_what_has_damage(clean):
    own = WeightSelector("srcnn-915-q40", torch.device("cpu"))
    assert own.weights_for_quality(None) == own.weights_for_quality(100) == "srcnn-915-q40"
    conditioned = WeightSelector("unet-jpeg", torch.device("cpu"))
    assert conditioned.weights_for_quality(None) is None
    assert conditioned.weights_for_quality(GOOD_QUALITY_CONDITIONED) is None
    assert conditioned.weights_for_quality(GOOD_QUALITY_CONDITIONED - 1) == "unet-jpeg"
    assert np.array_equal(restore(clean, "unet-jpeg"), clean)


@pytest.mark.parametrize("rows,columns", [(3, 6), (0, 1), (7, 7)])
def test_blocks_off_the_corner_are_restored_as_if_they_began_there(clean, rows, columns):
    """By a network that is made for blocks: what it does to the cropped photo is what it does to the whole one."""
    network = WeightSelector("unet-jpeg", torch.device("cpu")).load("unet-jpeg")
    pixels = decoded(saved(clean[:200, :232], 10, subsampling=0))
    options = RestoreOptions(exact=True, damage=jpeg_save(10, subsampled=False))
    whole = restore_array(pixels, network, options)
    cropped = np.ascontiguousarray(pixels[8 + rows :, 8 + columns :])
    damage = jpeg_save(10, subsampled=False)._replace(offset=(-rows % 8, -columns % 8))
    blind = restore_array(cropped, network, options)
    inner = np.s_[100 - rows : 120, 100 - columns : 140]  # beyond the edges' reach

    def difference(restored):
        return np.abs(restored[inner].astype(int) - whole[8 + rows :, 8 + columns :][inner]).mean()

    for tile_pixels in (0, 16, 96):
        aligned = restore_array(cropped, network, RestoreOptions(tile_pixels, exact=True, damage=damage))
        assert difference(aligned) < difference(blind) / 2
    kept = clean[8 + rows : 200, 8 + columns : 232]
    assert psnr(kept, aligned) > psnr(kept, blind)


def test_enlarging_restores_first_unless_told_otherwise(tmp_path, clean):
    small = np.asarray(Image.fromarray(clean).resize((160, 120), Image.Resampling.BICUBIC))
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(small, 20))
    expected = upscale(restore(decoded(path.read_bytes())), scale=2, restore_first=False)
    assert np.array_equal(upscale(decoded(path.read_bytes()), scale=2), expected)
    assert np.array_equal(np.asarray(upscale(path, scale=2)), expected)
    for option, wanted in (([], expected), (["--no-restore"], upscale(decoded(path.read_bytes()), scale=2,
                                                                      restore_first=False))):
        assert main(["upscale", str(path), "-o", str(tmp_path / "b.png"), "--overwrite", *option]) == 0
        assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), wanted)


def test_lossless_webp_stays_lossless(tmp_path, clean):
    Image.fromarray(decoded(saved(clean, 20))).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(clean).save(tmp_path / "lossy.webp", quality=80)
    assert main(["restore", str(tmp_path), "-o", str(tmp_path / "out"), "--force"]) == 0
    made = read_photo_file(tmp_path / "out" / "a.webp")
    assert made.is_lossless and not read_photo_file(tmp_path / "out" / "lossy.webp").is_lossless
    assert np.array_equal(np.asarray(made.image), restore(decoded(saved(clean, 20))))


def test_a_family_is_used_by_the_damage_and_not_by_the_file(clean):
    restorer = JpegRestorer(WeightSelector(FAMILY, torch.device("cpu")))
    again = decoded(saved(decoded(saved(clean, 10)), 95))
    treatment = restorer(access_to_array(again.copy()), jpeg_save(95))
    assert treatment.was_restored and treatment.weights == "srcnn-915-q10" and treatment.file.quality == 95
