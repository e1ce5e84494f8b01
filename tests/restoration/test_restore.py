"""Restored photos: as in one piece at any tile size, colours and metadata kept, nothing overwritten."""

import importlib
import inspect
import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import facts, says
from PIL import Image
from small import changing_network, draw_photo, random_photo

from srcnn.commands.output_paths import output_paths
from srcnn.models.device import full_precision, restores_in_bf16
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.unet import UNet, UNetConfig
from srcnn.models.weights import initialize, load_model
from srcnn.photos.degradation import Degradation, degrade
from srcnn.photos.metrics import psnr
from srcnn.photos.reading import PhotoRefused
from srcnn.restoration.jpeg_damage import JpegRestorer
from srcnn.restoration.restore import restore
from srcnn.restoration.restore_files import RestoreFile
from srcnn.restoration.tiled_inference import run_network
from srcnn.restoration.upscale import upscale
from srcnn.runtime.errors import UserError


@pytest.fixture(scope="module")
def model():
    return changing_network()


def whole(pixels, model):
    """The network on the whole greyscale photo at once, rounded."""
    with torch.no_grad():
        restored = model(torch.from_numpy(pixels.astype(np.float32) / 255)[None, None])[0, 0].numpy()
    return np.clip(np.rint(restored * 255), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(61, 83), (200, 77), (17, 16), (64, 96)])
@pytest.mark.parametrize("tile_pixels", [16, 33, 64, 1000])
def test_tiled_restore_equals_whole_photo(model, size, tile_pixels):
    pixels = random_photo(*size)
    tiled, at_once = restore(pixels, model, tile_pixels, exact=True), whole(pixels, model)
    difference = np.abs(tiled.astype(int) - at_once)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # rounding at .5 only
    assert (tiled != pixels).mean() > 0.5


def test_a_large_photo_has_fewer_than_one_pixel_in_100000_off(model):
    pixels = random_photo(700, 1100)
    difference = np.abs(restore(pixels, model, 128, exact=True).astype(int) - whole(pixels, model))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (4, 300), (9, 9)])
def test_the_smallest_photos_keep_their_size(model, size):
    assert restore(random_photo(*size), model).shape == size
    assert restore(random_photo(*size, 3), model).shape == (*size, 3)


def test_colour_restores_the_luma_and_keeps_the_chroma(model):
    # levels away from 0 and 255, so that clipping does not mix the channels
    pixels = 100 + random_photo(45, 51, 3) // 8
    restored = restore(pixels, model, 32, exact=True).astype(float)
    images = [Image.fromarray(photo.astype(np.uint8)) for photo in (pixels, restored)]
    before, after = (np.asarray(image.convert("YCbCr"), float) for image in images)
    assert np.abs(before[..., 1:] - after[..., 1:]).max() <= 1.5
    luma = (pixels @ np.array([0.299, 0.587, 0.114])).astype(np.float32) / 255
    with torch.no_grad():
        expected = model(torch.from_numpy(luma)[None, None])[0, 0].numpy() * 255
    assert np.abs(after[..., 0] - expected).max() <= 1.5


def test_an_rgb_network_restores_all_channels():
    network = SRCNN(ModelConfig(channels=3, filters=(4, 4), residual=True))
    initialize(network, "pytorch", 0)
    pixels = random_photo(40, 37, 3)  # 37: the last tile is narrower than the halo
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None])[0] * 255
    expected = expected.permute(1, 2, 0).numpy().round().clip(0, 255)
    assert np.abs(restore(pixels, network, 16, exact=True) - expected).max() <= 1


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("tile_pixels", [4, 16, 64])  # the halo is 6
@pytest.mark.parametrize("num_threads", [1, 3])
def test_in_place_and_threads_change_nothing(model, channels, tile_pixels, num_threads):
    pixels = random_photo(83, 61, channels)
    before, kept = torch.get_num_threads(), pixels.copy()
    expected = restore(pixels, model, tile_pixels, exact=True)
    assert np.array_equal(pixels, kept)
    try:
        torch.set_num_threads(num_threads)
        assert np.array_equal(restore(pixels, model, tile_pixels, exact=True), expected)
        assert restore(pixels, model, tile_pixels, exact=True, in_place=True) is pixels
        assert torch.get_num_threads() == num_threads
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == num_threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_images_are_restored_in_place_and_keep_their_transparency(model, mode):
    bands = [random_photo(61, 83, seed=seed) for seed in range(len(mode))]
    image = Image.merge(mode, [Image.fromarray(band) for band in bands])
    restored = restore(image, model, 16)
    assert np.array_equal(np.asarray(image.getchannel(0)), bands[0])
    assert restore(image, model, 16, in_place=True) is image
    assert image.mode == restored.mode == mode and image.tobytes() == restored.tobytes()
    if mode in ("LA", "RGBA"):
        assert np.array_equal(np.asarray(image.getchannel("A")), bands[-1])
    colours = bands[0] if mode in ("L", "LA") else np.dstack(bands[:3])
    expected = restore(colours, model, 16).reshape(61, 83, -1)
    for band in range(expected.shape[2]):
        assert np.array_equal(np.asarray(image.getchannel(band)), expected[..., band])


@pytest.mark.parametrize("name", ["restore", "upscale", "train"])
def test_a_public_function_is_a_plain_function_however_it_was_imported(name):
    import srcnn

    function = getattr(srcnn, name)
    assert name in srcnn.__all__ and inspect.isfunction(function)
    assert function is getattr(importlib.import_module(function.__module__), name)
    assert pickle.loads(pickle.dumps(function)) is function


def test_every_public_name_is_there_and_importing_the_package_imports_no_torch():
    lines = """
import sys, types, srcnn
assert not {"torch", "numpy", "PIL"} & set(sys.modules)
assert not any(isinstance(getattr(srcnn, name), types.ModuleType) for name in srcnn.__all__)
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_changed_in_place_is_refused(model):
    pixels = random_photo(20, 20)
    pixels.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        restore(pixels, model, in_place=True)
    with pytest.raises(ValueError, match="mode P"):
        restore(Image.new("P", (20, 20)), model, in_place=True)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_progress_counts_every_tile(model, num_threads):
    before, calls = torch.get_num_threads(), []
    try:
        torch.set_num_threads(num_threads)
        restore(random_photo(61, 83), model, 32, on_progress=lambda *call: calls.append(call))
    finally:
        torch.set_num_threads(before)
    assert calls == [(number, 6) for number in range(1, 7)]


@pytest.mark.parametrize("weights", ["srcnn-915-q20", "srcnn-915-q80", "unet-jpeg"])
def test_the_fast_path_is_within_a_hundredth_of_a_decibel(weights):
    if not restores_in_bf16(torch.device("cpu")):
        pytest.skip("this processor computes no bfloat16: one path only")
    network = load_model(weights)
    for seed in range(3):
        clean = draw_photo(seed, 201, 303)
        degraded = degrade(clean, Degradation(), 20)
        exact, fast = (restore(degraded, network, exact=choice) for choice in (True, False))
        assert (exact != fast).any() and np.abs(exact.astype(int) - fast).max() <= 2
        assert abs(psnr(clean, exact) - psnr(clean, fast)) < 0.01


NETWORKS = {
    "9-1-5": SRCNN(ModelConfig((9, 1, 5), (16, 8), residual=True)),
    "RGB 9-5-5, centred": SRCNN(ModelConfig((9, 5, 5), (16, 8), 3), centred=True),
    "U-Net": UNet(UNetConfig((8, 12, 16), 2)),
    "U-Net in YCbCr, centred": UNet(UNetConfig((8, 12), 1, 3, 2, ycbcr=True), centred=True),
    "U-Net of one scale": UNet(UNetConfig((8,), 1, 3, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(9, 90), (61, 77), (12, 13)])
def test_for_inference_a_network_gives_the_same_in_both_precisions(name, size):
    network = NETWORKS[name]
    initialize(network, "pytorch", 0)
    pixels = torch.rand(network.config.channels, *size, generator=torch.Generator().manual_seed(1))
    expected = network(pixels[None])[0].detach()
    assert (expected - pixels).abs().max() > 0.05
    with torch.inference_mode(), full_precision():
        exact = run_network(pixels, network.for_inference(torch.float32))
        torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(run_network(pixels, network), expected, rtol=1e-5, atol=1e-5)
        if restores_in_bf16(torch.device("cpu")):
            fast = network.for_inference(torch.bfloat16)
            assert fast.is_bf16 and not network.is_bf16
            torch.testing.assert_close(run_network(pixels, fast, bf16=True), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows,columns", [
    ((0, 61), (0, 77)), ((16, 48), (32, 64)), ((16, 61), (0, 45)), ((5, 6), (70, 77)),
])
@torch.inference_mode()
def test_the_inner_part_alone_is_as_in_the_whole(name, rows, columns):
    network, inner = NETWORKS[name], (slice(*rows), slice(*columns))
    initialize(network, "pytorch", 0)
    pixels = torch.rand(network.config.channels, 61, 77, generator=torch.Generator().manual_seed(1))
    found = run_network(pixels, network, inner=inner)
    torch.testing.assert_close(found, run_network(pixels, network)[:, inner[0], inner[1]], rtol=1e-5, atol=1e-5)


def test_a_network_without_residual_is_always_exact():
    network = SRCNN(ModelConfig(filters=(4, 4)))
    initialize(network, "pytorch", 0)
    pixels = random_photo(40, 37)
    assert np.array_equal(restore(pixels, network), restore(pixels, network, exact=True))


def test_pil_numpy_and_torch_come_back_as_their_kind(model):
    pixels = random_photo(30, 41, 3)
    restored = restore(pixels, model)
    assert np.array_equal(np.asarray(restore(Image.fromarray(pixels), model)), restored)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for photo in (tensor, tensor[None], torch.stack([tensor, tensor.flip(2)])):
        found = restore(photo, model)
        assert found.shape == photo.shape and found.dtype == torch.uint8
        assert np.array_equal(found.reshape(-1, *tensor.shape)[0].permute(1, 2, 0), restored)
    floats = restore(tensor / 255, model, exact=True)
    assert floats.dtype == torch.float32 and 0 <= floats.min() and floats.max() <= 1
    exact = restore(tensor, model, exact=True)
    assert (floats * 255 - exact).abs().max() < 0.51 and (floats * 255 - exact).abs().max() > 0.1
    alpha = random_photo(30, 41, seed=1)
    image = Image.fromarray(np.dstack([pixels, alpha]), "RGBA")
    assert np.array_equal(np.asarray(restore(image, model).getchannel("A")), alpha)


def test_pixels_of_another_kind_are_refused(model):
    for pixels in (np.zeros((4, 4), np.float64), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match=facts(pixels.dtype, pixels.shape)):
            restore(pixels, model)
    for tensor in (torch.zeros(4, 4), torch.zeros(2, 4, 4), torch.zeros(3, 4, 4, dtype=torch.int16)):
        with pytest.raises(ValueError, match=facts(tensor.dtype, tuple(tensor.shape))):
            restore(tensor, model)


def jpeg_with_metadata(path, orientation=1):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Camera", orientation
    profile = b"profile" * 20
    Image.fromarray(random_photo(24, 40, 3)).save(path, quality=20, exif=exif, icc_profile=profile, dpi=(300, 300))
    return profile


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
def test_metadata_is_kept_and_the_orientation_applied_once(tmp_path, model, suffix):
    profile = jpeg_with_metadata(tmp_path / "old.jpg", orientation=6)
    RestoreFile(JpegRestorer(model), 95)(tmp_path / "old.jpg", tmp_path / f"new{suffix}")
    with Image.open(tmp_path / f"new{suffix}") as image:
        assert image.size == (24, 40)  # turned by 90 degrees
        assert image.getexif().get(0x0112, 1) == 1
        assert image.getexif()[0x010F] == "Camera"
        assert image.info["icc_profile"] == profile
        if suffix != ".webp":
            assert tuple(map(round, map(float, image.info["dpi"]))) == (300, 300)


def test_nothing_is_written_over_a_source_photo(tmp_path, model):
    jpeg_with_metadata(tmp_path / "photo.jpg")
    (tmp_path / "link").symlink_to(tmp_path)
    for sources, out in ((tmp_path / "photo.jpg", tmp_path), (tmp_path, tmp_path),
                         (tmp_path / "photo.jpg", tmp_path / "link")):
        targets, (error,), _ = output_paths(sources, out)
        assert not targets and says(error, out / "photo.jpg", "--suffix")
    with pytest.raises(UserError, match=facts(tmp_path / "photo.jpg", "-o")):
        output_paths(tmp_path, tmp_path / "photo.jpg")


def test_folders_keep_their_structure_and_names_in_several_formats_become_several(tmp_path):
    for name in ("a/x.jpg", "b/x.png", "b/y.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "in" / name)
    targets = output_paths(tmp_path / "in", tmp_path / "out").targets
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in targets.values()) == [
        "a/x.jpg", "b/x.png", "b/y.jpg",
    ]
    Image.new("L", (8, 8)).save(tmp_path / "in/b/x.jpg")
    targets, errors, _ = output_paths([tmp_path / "in", tmp_path / "nowhere"], tmp_path / "out", ".png")
    assert sorted(target.relative_to(tmp_path / "out").as_posix() for target in targets.values()) == [
        "a/x.png", "b/x.jpg.png", "b/x.png.png", "b/y.png",
    ]
    assert len(errors) == 1 and says(errors[0], tmp_path / "nowhere")


def test_two_photos_of_one_name_are_not_written_to_one_file(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / folder / "x.jpg")
    targets, errors, _ = output_paths([tmp_path / "a/x.jpg", tmp_path / "b/x.jpg"], tmp_path / "out")
    assert not targets and len(errors) == 2
    assert all(says(error, "a/x.jpg", "b/x.jpg", tmp_path / "out/x.jpg") for error in errors)


def test_an_interrupted_write_leaves_no_file(tmp_path, model, monkeypatch):
    jpeg_with_metadata(tmp_path / "old.jpg")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space"):
        RestoreFile(JpegRestorer(model), 95)(tmp_path / "old.jpg", tmp_path / "out" / "new.jpg")
    assert list((tmp_path / "out").iterdir()) == []


def test_restoring_undoes_some_of_a_jpegs_damage(shared_data):
    with Image.open(shared_data / "val/classic5/1.png") as image:
        clean = np.asarray(image.convert("L"))
    buffer = io.BytesIO()
    Image.fromarray(clean).save(buffer, "JPEG", quality=20)
    degraded = np.asarray(Image.open(buffer))
    assert psnr(clean, restore(degraded, load_model("srcnn-915-q20"))) > psnr(clean, degraded) + 0.5


def test_info_of_another_mode_and_qualities_that_are_none_are_left_out(model):
    image = Image.fromarray(random_photo(20, 31, 3)).convert("CMYK")
    image.info |= {"icc_profile": b"four inks", "dpi": (300, 300)}
    assert restore(image, model).info == {"dpi": (300, 300)}
    for quality in (0, -5, 101, float("nan")):
        with pytest.raises(ValueError, match="quality"):
            restore(random_photo(20, 31, 3), model, quality=quality)


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_path_gives_the_upright_image_with_its_metadata(tmp_path, model, as_path):
    profile = jpeg_with_metadata(tmp_path / "old.jpg", orientation=6)
    restored = restore(as_path(tmp_path / "old.jpg"), model)
    RestoreFile(JpegRestorer(model), 95)(tmp_path / "old.jpg", tmp_path / "new.png")
    assert np.array_equal(np.asarray(restored), np.asarray(Image.open(tmp_path / "new.png")))
    assert restored.size == (24, 40) and restored.info["icc_profile"] == profile
    assert restored.getexif()[0x0112] == 1 and restored.getexif()[0x010F] == "Camera"


def test_a_path_is_restored_by_the_shipped_weights_for_its_quality(tmp_path):
    for quality in (20, 97):
        Image.fromarray(draw_photo(1, 45, 67)).save(tmp_path / f"{quality}.jpg", quality=quality)
    assert np.array_equal(restore(tmp_path / "20.jpg"), restore(Image.open(tmp_path / "20.jpg")))
    assert np.array_equal(restore(tmp_path / "97.jpg"), Image.open(tmp_path / "97.jpg"))
    Image.fromarray(np.full((9, 11), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert restore(tmp_path / "deep.png").mode == "I;16"
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    with pytest.raises(PhotoRefused, match=facts(tmp_path / "bad.jpg")):
        restore(tmp_path / "bad.jpg")


@pytest.mark.parametrize("function", [restore, upscale])
def test_wrong_types_are_refused_with_those_that_are_accepted(model, function):
    for photo in (3, b"photo.jpg", None, [[0]]):
        with pytest.raises(UserError, match=facts(type(photo).__name__, "path", "Pillow", "NumPy", "torch")):
            function(photo, model)
    with pytest.raises(UserError, match=facts("Conv2d", "srcnn.wrap", "halo")):
        function(random_photo(9, 11), torch.nn.Conv2d(1, 1, 3))
    for network in (torch.nn.Conv2d, 3):
        with pytest.raises(UserError, match=facts(type(network).__name__, "SRCNN", "UNet", "name")):
            function(random_photo(9, 11), network)
