"""Scores: the JPEG rows everybody publishes, and the two kinds of luma."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from small import draw_photo

from srcnn.__main__ import main
from srcnn.degrade import Degradation
from srcnn.model import DEFAULT_WEIGHTS, SRCNN, WEIGHTS, ModelConfig, load_model, save_model
from srcnn.score import degraded_luma, mean_score, score_folder, score_photo, to_json, to_markdown


@pytest.fixture
def identity():
    model = SRCNN(ModelConfig(filters=(1, 1), residual=True))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    return model.eval()


def test_a_network_that_does_nothing_gains_nothing(identity):
    score = score_photo("photo", draw_photo(0, 61, 83), identity, "l", Degradation())
    assert score.gain == score.gain_percent == 0.0
    assert (score.ssim, score.psnr_b) == (score.ssim_in, score.psnr_b_in)


def test_limited_range_y_is_matlabs():
    photo = draw_photo(1, 40, 30)
    clean, _ = degraded_luma(photo, "y", Degradation())
    assert np.array_equal(clean, np.rint(rgb2ycbcr(photo)[..., 0]).astype(np.uint8))
    assert 16 <= clean.min() and clean.max() <= 235


@pytest.mark.parametrize(
    "photos,quality,published",
    [
        ("live1_y", 10, (27.77, 0.773, 25.33)),
        ("live1_y", 20, (30.07, 0.851, 27.57)),
        ("live1_y", 40, (32.35, 0.904, 29.96)),
        ("classic5", 20, (30.12, 0.834, 27.50)),
    ],
)
def test_the_published_jpeg_rows_come_out_to_the_last_digit(shared_data, identity, photos, quality, published):
    scores, refused = score_folder(shared_data / "val" / photos, identity, "y", Degradation(jpeg_quality=quality))
    assert not refused
    score = mean_score(scores)
    assert (round(score.psnr_in, 2), round(score.ssim_in, 3), round(score.psnr_b_in, 2)) == published


def test_the_shipped_weights_still_gain_what_their_card_says(shared_data):
    card = json.loads((WEIGHTS / f"{DEFAULT_WEIGHTS}.json").read_text())
    scores, _ = score_folder(shared_data / "val" / "classic5", load_model(), "y", Degradation())
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
