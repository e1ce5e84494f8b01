"""Model cards: what they say, on which sets weights are scored, and whether the numbers still hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from messages import facts, lines_with, says
from PIL import Image
from small import draw_photo, small_shards

from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weight_files import WEIGHTS
from srcnn.models.weights import save_model
from srcnn.photos.degradation import Degradation
from srcnn.restoration.model_cards import (
    ScoredSet,
    card_scores,
    make_card,
    purpose,
    sets_for,
    to_markdown,
    verify_weights,
)
from srcnn.runtime.files import write_json

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {"run": "runs/mine", "weights": "", "total_samples": 640}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SRCNN(ModelConfig(filters=(4, 4), residual=True)).eval()


@pytest.fixture
def photos(tmp_path):
    for folder in ("set5", "classic5", "live1_y"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(draw_photo(number, 43, 37)).convert("L").save(
                tmp_path / "photos" / folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def shipped(tmp_path, network, photos):
    """A folder of weights with a card: a network for quality 30."""
    shards = small_shards(tmp_path / "made", degradation=Degradation(jpeg_quality=30))
    card = make_card(network, SETTINGS | {"shards": str(shards)}, photos, "0123456789ab")
    (tmp_path / "weights").mkdir()
    save_model(network, tmp_path / "weights" / "mine.safetensors")
    write_json(tmp_path / "weights" / "mine.json", card)
    return tmp_path / "weights"


def edit(path, title, **changes):
    card = json.loads(path.read_text())
    card["scores"][title].update(changes)
    path.write_text(json.dumps(card))


@pytest.mark.parametrize("title", ["live1_y, Y, quality 20", "city20, L, quality 5", "set5, Y, scale 3",
                                   "my.set-1, Y, scale 4, quality 90"])
def test_titles_say_how_a_set_was_degraded_and_are_read_again(title):
    assert ScoredSet.parse(title).title == title


@pytest.mark.parametrize("title", ["", "set5, Y", "../set5, Y, scale 3", ".., Y, scale 3", "a/b, Y, quality 20",
                                   "set5, Z, scale 3", "set5, Y, quality 0", "set5, Y, scale 1", "set5, Y, scale 3\n"])
def test_other_titles_are_refused(title):
    with pytest.raises(ValueError):
        ScoredSet.parse(title)


def test_weights_are_scored_on_what_they_are_for():
    titles = [[each.title for each in sets_for(trained_on)] for trained_on in (
        Degradation(jpeg_quality=10), Degradation(jpeg_quality=[5, 95]), Degradation(jpeg_quality=[], scale=3))]
    assert "live1_y, Y, quality 10" in titles[0] and "bsd100, L, quality 10" in titles[0] and len(titles[0]) == 6
    assert titles[1] == [f"{compared}, quality {quality}"
                         for compared in ("live1_y, Y", "classic5, Y", "live1_color, RGB", "city20, L")
                         for quality in (10, 20, 30, 40, 60, 80, 90)]
    assert titles[2] == ["set5, Y, scale 3", "set14, Y, scale 3", "bsd100, Y, scale 3"]
    assert [each.title for each in sets_for(Degradation(jpeg_quality=[91, 93]))][:2] == [
        "live1_y, Y, quality 91", "live1_y, Y, quality 93"]


def test_the_purpose_names_the_damage():
    assert says(purpose(Degradation(jpeg_quality=10)), "JPEG", 10)
    assert says(purpose(Degradation(jpeg_quality=[5, 95])), "JPEG", 5, 95)
    enlarged = purpose(Degradation(jpeg_quality=[], scale=3))
    assert says(enlarged, "bicubic", 3) and not says(enlarged, "JPEG")
    assert says(purpose(Degradation(jpeg_quality=40, scale=2)), "bicubic", 2, "JPEG", 40)


def test_a_card_that_is_right_is_verified(shipped, photos):
    rows = list(verify_weights([], photos, shipped))
    assert [(row.weights, row.title) for row in rows] == [
        ("mine", "live1_y, Y, quality 30"), ("mine", "classic5, Y, quality 30")]
    assert all(row.ok and row.measured == row.card for row in rows)


def test_a_number_that_is_off_by_more_than_a_hundredth_is_named(shipped, photos):
    title = "classic5, Y, quality 30"
    told = card_scores("mine", shipped)[title]["psnr"]
    edit(shipped / "mine.json", title, psnr=told + 0.0099)
    assert all(row.ok for row in verify_weights(["mine"], photos, shipped))
    edit(shipped / "mine.json", title, psnr=told + 0.0101)
    first, second = verify_weights(["mine"], photos, shipped)
    assert first.ok and not second.ok
    assert says(second.problem, "psnr", f"{told:.4f}", f"{told + 0.0101:.4f}") and "psnr_" not in second.problem
    edit(shipped / "mine.json", title, psnr=float("nan"))
    assert says(list(verify_weights(["mine"], photos, shipped))[1].problem, "psnr", "nan")


def test_other_weights_do_not_pass(shipped, photos):
    save_model(SRCNN(ModelConfig(filters=(4, 4), residual=True)), shipped / "mine.safetensors")
    assert all("psnr" in row.problem and "psnr_in" not in row.problem for row in verify_weights([], photos, shipped))


def test_other_photos_do_not_pass(shipped, photos):
    Image.fromarray(draw_photo(5, 43, 37)).save(photos / "live1_y" / "more.png")
    Image.fromarray(draw_photo(5, 43, 37)).convert("L").save(photos / "classic5" / "0.png")
    first, second = verify_weights([], photos, shipped)
    assert says(first.problem, 3, 2) and first.measured["num_photos"] == 3
    assert "psnr_in" in second.problem
    (photos / "live1_y" / "more.png").write_bytes(b"no picture")
    row = next(verify_weights([], photos, shipped))
    assert not row.ok and row.measured is None and "more.png" in row.problem


def test_sets_that_are_not_there_are_not_checked_and_all_of_them_are_an_error(shipped, photos):
    (photos / "classic5").rename(photos / "elsewhere")
    first, second = verify_weights([], photos, shipped)
    assert first.ok and not second.ok and second.measured is None and second.problem == ""
    (photos / "live1_y").rename(photos / "elsewhere too")
    with pytest.raises(ValueError, match=facts(photos, "classic5", "live1_y")):
        list(verify_weights([], photos, shipped))


@pytest.mark.parametrize("scores", [None, [], {}, {"live1_y, Y, quality 20": 3}, {"../x, Y, quality 20": {}},
                                    {"live1_y, Y, quality 20": {"psnr": "30"}}])
def test_damaged_cards_are_named(shipped, photos, scores):
    (shipped / "mine.json").write_text(json.dumps({"scores": scores}))
    with pytest.raises(ValueError, match=facts(shipped / "mine.json")):
        list(verify_weights([], photos, shipped))


def test_weights_and_photos_that_are_not_there_are_named(shipped, photos):
    with pytest.raises(FileNotFoundError, match=facts("other", shipped, "mine")):
        list(verify_weights(["other"], photos, shipped))
    with pytest.raises(FileNotFoundError, match=facts("../weights/mine")):
        list(verify_weights(["../weights/mine"], photos, shipped))
    with pytest.raises(FileNotFoundError, match=facts(photos / "nowhere")):
        list(verify_weights([], photos / "nowhere", shipped))


def test_every_shipped_card_can_be_read():
    names = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    assert names and names == sorted(path.stem for path in WEIGHTS.glob("*.json"))
    assert all(len(card_scores(name)) >= 2 for name in names)


def test_release_writes_a_card_for_a_scale_and_verify_believes_it(tmp_path, network, photos):
    shards = small_shards(tmp_path / "made", degradation=Degradation(jpeg_quality=[], scale=3))
    run = tmp_path / "runs" / "x3-of-mine"
    (run / "best").mkdir(parents=True)
    save_model(network, run / "best" / "model.safetensors")
    write_json(run / "config.yaml", SETTINGS | {"shards": str(shards)})
    command = [sys.executable, REPOSITORY / "launch" / "release.py", "--run", run, "--photos", photos,
               "--out", tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "x3-of-mine.md").read_text()
    assert text in done.stdout
    assert says(text, "bicubic", "border", 3)
    assert "| set5, Y, scale 3 |" in text and text.splitlines()[-1].endswith("| - |")
    assert [row.title for row in verify_weights([], photos, tmp_path / "out") if row.ok] == ["set5, Y, scale 3"]
    assert str(tmp_path) not in (tmp_path / "out" / "x3-of-mine.json").read_text()


def test_a_card_says_what_the_weights_are_for_and_what_they_give(shipped, network):
    text = to_markdown("mine", network, json.loads((shipped / "mine.json").read_text()))
    assert "# mine\n" in text and lines_with(text, "JPEG", 30) and "border" in text
    row = next(line for line in text.splitlines() if line.startswith("| classic5, Y, quality 30 |"))
    assert row.count("->") == 2
