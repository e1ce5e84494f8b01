"""Scores: the JPEG rows everybody publishes, and the two kinds of luma."""

import io
import json
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from messages import facts, says
from PIL import Image
from skimage.color import rgb2ycbcr
from small import draw_photo, identity_network

from srcnn.__main__ import main
from srcnn.models.perceptual import perceptual_distances
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weight_files import DEFAULT_MODEL, WEIGHTS
from srcnn.models.weights import load_model, save_model
from srcnn.photos.degradation import Degradation, bicubic_levels
from srcnn.photos.metrics import psnr, ssim
from srcnn.photos.reading import photos_below, read_photo
from srcnn.restoration.restore import restore
from srcnn.restoration.score import (
    NETWORK_ALONE,
    EarlierSave,
    degraded_pair,
    mean_score,
    score_folder,
    score_photo,
    to_json,
    to_markdown,
)
from srcnn.restoration.tiled_inference import run_network


@pytest.fixture
def identity():
    return identity_network()


def test_a_network_that_does_nothing_gains_nothing(identity):
    score = score_photo("photo", draw_photo(0, 61, 83), identity, "l", Degradation())
    assert score.gain == score.gain_percent == 0.0
    assert (score.ssim, score.psnr_b) == (score.ssim_in, score.psnr_b_in)


@pytest.mark.parametrize("name", ["srcnn-915-q20", "unet-jpeg"])
def test_colours_are_restored_as_photos_are(name):
    clean, buffer = draw_photo(2, 61, 83), io.BytesIO()
    is_for_jpeg = name == "unet-jpeg"
    score = score_photo("photo", clean, load_model(name), "rgb", Degradation(jpeg_quality=20),
                        options=replace(NETWORK_ALONE, consistent=is_for_jpeg))
    Image.fromarray(clean).save(buffer, "JPEG", quality=20, subsampling="4:2:0")
    with Image.open(buffer) as damaged:
        assert score.psnr_in == psnr(clean, np.asarray(damaged))
        assert score.psnr == psnr(clean, np.asarray(restore(damaged, load_model(name), exact=True)))
    assert score.psnr_b is None and score.ssim > score.ssim_in
    with pytest.raises(ValueError, match="RGB"):
        score_photo("photo", clean, load_model(name), "rgb", Degradation(jpeg_quality=[], scale=2))


def test_limited_range_y_is_matlabs():
    photo = draw_photo(1, 40, 30)
    clean, _ = degraded_pair(photo, "y", Degradation())
    assert np.array_equal(clean, np.rint(rgb2ycbcr(photo)[..., 0]).astype(np.uint8))
    assert 16 <= clean.min() and clean.max() <= 235


@pytest.mark.parametrize(
    "photos,quality,published",
    [
        pytest.param("live1_y", 10, (27.77, 0.773, 25.33), marks=pytest.mark.slow),
        pytest.param("live1_y", 20, (30.07, 0.851, 27.57), marks=pytest.mark.slow),
        pytest.param("live1_y", 40, (32.35, 0.904, 29.96), marks=pytest.mark.slow),
        ("classic5", 20, (30.12, 0.834, 27.50)),
    ],
)
def test_the_published_jpeg_rows_come_out_to_the_last_digit(shared_data, identity, photos, quality, published):
    scores, refused = score_folder(shared_data / "val" / photos, identity, "y", Degradation(jpeg_quality=quality))
    assert not refused
    score = mean_score(scores)
    assert (round(score.psnr_in, 2), round(score.ssim_in, 3), round(score.psnr_b_in, 2)) == published


@pytest.mark.slow
@pytest.mark.parametrize("qualities,published", [
    ((30, 10), (27.49, 0.762)), ((30, 30), (29.98, 0.847)), ((10, 30), (27.55, 0.760)),
])
def test_the_published_rows_of_double_jpeg_come_out_to_the_last_digit(shared_data, qualities, published):
    """FBCNN (ICCV 2021), the column JPEG of its table of non-aligned double JPEG."""
    first, last = qualities
    pairs = [degraded_pair(read_photo(path), "y", Degradation(jpeg_quality=last), EarlierSave(first, 4))
             for path in photos_below(shared_data / "val" / "live1_y")]
    assert len(pairs) == 29
    similar = [float(ssim(*(torch.from_numpy(each / 255)[None, None] for each in pair))) for pair in pairs]
    assert (round(np.mean([psnr(*pair) for pair in pairs]), 2), round(np.mean(similar), 3)) == published


@pytest.mark.parametrize("shift", [0, 4])
def test_photos_saved_twice_are_restored_as_their_files_are(shift, tmp_path, capsys):
    clean, buffer = draw_photo(2, 125, 131), io.BytesIO()
    Image.fromarray(clean).save(tmp_path / "photo.png")
    Image.fromarray(clean).save(buffer, "JPEG", quality=20, subsampling="4:2:0")
    with Image.open(buffer) as once:
        again = once.crop((shift, shift, *once.size))
    again.save(buffer := io.BytesIO(), "JPEG", quality=60, subsampling="4:2:0")
    arguments = ["score", str(tmp_path), "--luma", "rgb", "--quality", "20,60", "--consistent",
                 "--json", str(tmp_path / "a.json")]
    assert main([*arguments, "--shift", str(shift)] if shift else arguments) == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert [written[key] for key in ("first_quality", "shift", "quality")] == [20, shift, 60]
    assert says(capsys.readouterr().out, "20", f"shifted by {shift}", "60")
    with Image.open(buffer) as damaged:
        assert written["mean"]["psnr_in"] == psnr(clean[shift:, shift:], np.asarray(damaged))
        restored = np.asarray(restore(damaged, exact=True))
    assert written["mean"]["psnr"] == pytest.approx(psnr(clean[shift:, shift:], restored), abs=1e-9)


@pytest.mark.parametrize("arguments,named", [
    (["--quality", "10,20,30"], "10,20,30"), (["--quality", "ten"], "ten"), (["--quality", "0,30"], "0"),
    (["--quality", "30", "--shift", "4"], "--quality 10,30"), (["--quality", "10,30", "--shift", "-1"], "-1"),
    (["--quality", "10,30", "--shift", "40"], "56x45"),
])
def test_saves_that_cannot_be_are_refused(arguments, named, tmp_path, capsys):
    Image.fromarray(draw_photo(0, 45, 56)).save(tmp_path / "photo.png")
    try:
        assert main(["score", str(tmp_path), *arguments]) != 0
    except SystemExit as stop:
        assert stop.code != 0
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "photos,scale,published",
    [
        ("set5", 2, (33.66, 0.930)),
        ("set5", 3, (30.39, 0.868)),
        ("set5", 4, (28.42, 0.810)),
        ("set14", 3, (27.55, 0.774)),
    ],
)
def test_the_published_bicubic_rows_come_out(shared_data, identity, photos, scale, published):
    degradation = Degradation(jpeg_quality=[], scale=scale)
    scores, refused = score_folder(shared_data / "val" / photos, identity, "y", degradation)
    assert not refused
    score = mean_score(scores)
    assert score.psnr == score.psnr_in == pytest.approx(published[0], abs=0.0125)  # where imresize and Pillow differ
    assert score.ssim_in == pytest.approx(published[1], abs=0.0006)
    assert score.psnr_b is None and score.psnr_b_in is None


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("luma", ["y", "l"])
def test_the_network_gets_unrounded_bicubic_and_the_border_is_not_measured(scale, luma):
    torch.manual_seed(0)
    model = SRCNN(ModelConfig(filters=(4, 4), residual=True)).eval()
    photo = draw_photo(3, 41, 59)
    clean, degraded = degraded_pair(photo, luma, Degradation(jpeg_quality=[], scale=scale))
    assert degraded.dtype == np.float32 and np.any(degraded != np.rint(degraded))
    assert np.array_equal(degraded, bicubic_levels(clean, scale))
    with torch.inference_mode():
        restored = 255 * run_network(torch.from_numpy(degraded / 255)[None], model)[0].numpy()
    score = score_photo("photo", photo, model, luma, Degradation(jpeg_quality=[], scale=scale))
    for other, found in ((degraded, score.psnr_in), (restored, score.psnr)):
        error = (np.clip(np.round(other), 0, 255) - clean)[scale:-scale, scale:-scale].astype(float)
        assert found == pytest.approx(20 * np.log10(255 / np.sqrt((error**2).mean())), abs=1e-4)


def test_scaled_photos_too_small_to_measure_are_refused_by_size(identity):
    degradation = Degradation(jpeg_quality=[], scale=4)
    score_photo("photo", draw_photo(0, 23, 20), identity, "y", degradation)
    with pytest.raises(ValueError, match=facts("20x19", 4)):
        score_photo("photo", draw_photo(0, 19, 20), identity, "y", degradation)


def test_tables_of_scaled_photos_have_no_psnr_b(identity):
    scores = [score_photo("photo", draw_photo(0, 40, 56), identity, "y", Degradation(jpeg_quality=[], scale=2))]
    table = to_markdown(scores)
    assert "PSNR-B" not in table and len({line.count("|") for line in table.splitlines()}) == 1
    assert to_json(scores)[-1]["psnr_b"] is None


@pytest.mark.slow
def test_the_shipped_weights_still_gain_what_their_card_says(shared_data):
    name = "srcnn-915-q20"
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    scores, _ = score_folder(shared_data / "val" / "classic5", load_model(name), "y", Degradation())
    assert mean_score(scores).gain == pytest.approx(card["scores"]["classic5, Y, quality 20"]["gain"], abs=0.01)


def test_tables_hold_every_photo_and_the_mean(identity):
    photos = {"a": draw_photo(0, 40, 56), "b": draw_photo(1, 40, 56)}
    scores = [score_photo(name, pixels, identity, "l", Degradation()) for name, pixels in photos.items()]
    rows = to_json(scores)
    assert [row["photo"] for row in rows] == ["a", "b", "mean of 2"]
    assert rows[2]["psnr_in"] == pytest.approx((rows[0]["psnr_in"] + rows[1]["psnr_in"]) / 2)
    assert to_markdown(scores).count("\n") == 5


def test_the_command_writes_the_table_as_json_and_markdown(tmp_path, identity, capsys):
    save_model(identity, tmp_path / "model.safetensors")
    (tmp_path / "photos").mkdir()
    Image.fromarray(draw_photo(0, 40, 56)).save(tmp_path / "photos" / "a|b.png")
    arguments = ["score", str(tmp_path / "photos"), "--model", str(tmp_path / "model.safetensors"), "--quality", "30",
                 "--json", str(tmp_path / "scores.json"), "--markdown", str(tmp_path / "scores.md")]
    assert main(arguments) == 0
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["quality"] == 30 and written["mean"]["gain"] == 0.0
    assert (tmp_path / "scores.md").read_text() in capsys.readouterr().out
    assert "a\\|b.png" in (tmp_path / "scores.md").read_text()
    (tmp_path / "photos" / "small.png").write_bytes(b"no picture")
    assert main(arguments) == 1
    assert "small.png" in capsys.readouterr().err


@pytest.fixture
def mean_difference(monkeypatch):
    """In place of LPIPS and DISTS, whose weights are large: the mean absolute difference."""
    class MeanDifference(torch.nn.Module):
        def forward(self, photo, other):
            assert photo.shape == other.shape and photo.shape[1] == 3 and photo.dtype == torch.float32
            return (photo - other).abs().mean()

    monkeypatch.setattr("srcnn.models.perceptual._make", lambda name: MeanDifference())


def test_perceptual_distances_are_measured_where_they_are_asked_for(mean_difference, identity, tmp_path, capsys):
    for number in range(2):
        Image.fromarray(draw_photo(number, 61, 83)).save(tmp_path / f"{number}.png")
    save_model(identity, tmp_path / "model.safetensors")
    settings = ["--model", str(tmp_path / "model.safetensors"), "--json", str(tmp_path / "a.json")]
    assert main(["score", str(tmp_path), "--metric", "lpips", "--metric", "dists", *settings]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()[2:]
    titles = [cell.strip() for cell in header.split("|")[1:-1]]
    assert titles[-4:] == ["LPIPS in", "LPIPS out", "DISTS in", "DISTS out"]
    assert all(row.count("|") == header.count("|") for row in rows) and len(rows) == 3
    table = json.loads((tmp_path / "a.json").read_text())
    expected = []
    for number in range(2):
        clean, degraded = degraded_pair(draw_photo(number, 61, 83), "l", Degradation(jpeg_quality=20))
        levels = [np.asarray(Image.fromarray(each).convert("L"), float) for each in (clean, degraded)]
        expected.append(np.abs(levels[0] - levels[1]).mean() / 255)
    assert [photo["lpips_in"] for photo in table["photos"]] == pytest.approx(expected, rel=1e-5)
    assert table["mean"]["dists"] == pytest.approx(np.mean(expected), rel=1e-5) and "distances" not in table["mean"]


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(ConnectionError, match=facts("lpips", "no network", "checkpoints")):
        perceptual_distances(["lpips"], torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name,weights", [("lpips", "AlexNet_Weights"), ("dists", "VGG16_Weights")])
def test_a_distance_is_zero_for_the_same_and_grows_with_the_damage(monkeypatch, name, weights):
    """With random weights of the network that torchvision would download."""
    build = {"AlexNet_Weights": torchvision.models.alexnet, "VGG16_Weights": torchvision.models.vgg16}[weights]
    torch.manual_seed(0)
    state = build(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    distance = perceptual_distances([name], torch.device("cpu"))[name]
    clean = torch.from_numpy(draw_photo(0, 67, 83)[..., 0].copy())[None, None].double() / 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).double()
    none, little, much = (float(distance(clean, clean + noise * share)) for share in (0, 0.02, 0.2))
    assert none == pytest.approx(0, abs=1e-5) and 0 <= none < little < much
    grey = clean.expand(-1, 3, -1, -1)
    assert float(distance(grey, (grey + noise * 0.2))) == pytest.approx(much, rel=1e-5)


def test_without_a_name_the_weights_that_restore_by_default_are_measured(tmp_path, capsys):
    Image.fromarray(draw_photo(1, 45, 61)).save(tmp_path / "photo.png")
    assert main(["score", str(tmp_path), "--quality", "10"]) == 0
    assert says(capsys.readouterr().out, "quality 10", DEFAULT_MODEL)
