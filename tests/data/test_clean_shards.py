"""Shards whose training samples are clean tiles alone, and what is known of how frozen pairs were saved."""

import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import webdataset
from accelerate import Accelerator
from conftest import contents, photos_of
from messages import facts
from PIL import Image
from small import small_config, small_shards

from shards.command import report
from shards.plan import ResizedPhotos, ShardsConfig
from shards.tar import scan_tar
from shards.workers import ShardsFailed
from shards.write import Summary, make_shards
from srcnn.commands.doctor import DoctorConfig, doctor
from srcnn.data.dataset import ShardDataset
from srcnn.data.loader import val_batches
from srcnn.data.manifest import ShardError, read_manifest
from srcnn.data.training_pairs import DegradationConfig
from srcnn.data.verify import verify_shards
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weights import initialize
from srcnn.photos.degradation import Degradation
from srcnn.photos.jpeg_quality import jpeg_save_of
from srcnn.photos.metrics import psnr
from srcnn.photos.tiling import cut_to_cover, starts_to_cover
from srcnn.runtime.files import sha256_of
from srcnn.runtime.storage import Folder
from srcnn.training.loss import LossAndScores, conditions_for
from srcnn.training.setup import check_samples
from srcnn.training.validation import validate


@pytest.fixture(scope="module", params=["npy", "png"])
def both(request, tmp_path_factory):
    """Shards of the same photos, 167x101 pixels, as pairs and with clean training tiles: 6 and 12 a photo."""
    made = {"tile_pixels": 48, "color": "rgb", "samples_per_shard": 12, "encoding": request.param}
    folder = tmp_path_factory.mktemp(request.param)
    return small_shards(folder / "pairs", **made), small_shards(folder / "clean", **made, contents="clean")


def config_of(out, **changes):
    """The settings of `both`, once more."""
    plan = json.loads((out / "plan.json").read_text())["config"]
    known = {key: plan[key] for key in ("tile_pixels", "color", "samples_per_shard", "encoding", "resize")}
    folder = out.parent
    return ShardsConfig(photos=str(folder / "photos"), val=str(folder / "val photos"), out=str(out),
                        **{"contents": "clean", "num_workers": 1} | known | changes)


def test_clean_tiles_cover_the_photos_as_webdataset_reads_them(both):
    folder = both[1] / "train"
    urls = sorted(map(str, folder.glob("*.tar")))
    found = {sample.pop("__key__"): sample for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")}
    names = {name for sample in found.values() for name in sample if not name.startswith("__")}
    assert names == {name := f"clean.{read_manifest(Folder(folder)).encoding}"} and len(urls) == 5
    photos = [np.asarray(Image.open(path)) for path in sorted((both[1].parent / "photos").iterdir())]
    expected = [photo[top : top + 48, left : left + 48] for photo in photos
                for top in (0, 26, 53) for left in (0, 39, 79, 119)]
    assert len(expected) == len(found) == 60
    assert all(np.array_equal(found[f"{number:010d}"][name], tile) for number, tile in enumerate(expected))
    reader, chosen = ShardDataset(folder), np.array([59, 0, 13, 12, 11])
    tiles, same = reader.read(chosen)
    assert tiles is same and np.array_equal(tiles, np.stack(expected)[chosen]) and reader.num_members == 1


def test_tiles_that_cover_leave_nothing_out_and_are_as_few_as_can_be():
    assert [starts_to_cover(length, 8) for length in (7, 8, 9, 16, 17)] == [[], [0], [0, 1], [0, 8], [0, 4, 9]]
    for length in range(8, 100):
        starts = starts_to_cover(length, 8)
        assert starts[0] == 0 and starts[-1] == length - 8 and len(starts) == -(-length // 8)
        assert max(np.diff(starts), default=0) <= 8
    assert cut_to_cover(np.zeros((7, 20, 3), np.uint8), 8).shape == (0, 8, 8, 3)


def test_the_validation_split_holds_the_same_pairs(both):
    pairs, clean = both
    tars = [path.name for path in (pairs / "val").glob("*.tar")]
    assert tars and all(sha256_of(pairs / "val" / name) == sha256_of(clean / "val" / name) for name in tars)
    assert not read_manifest(Folder(clean / "val")).is_clean_only


def test_a_sample_has_half_the_bytes_and_its_row_tells_where_its_tile_lies(both):
    pairs, clean = (read_manifest(Folder(out / "train")) for out in both)
    assert clean.stride is None or clean.stride == pairs.stride / 2
    assert clean.members == pairs.members[:1] and clean.degraded_psnr == 0
    _, rows, keys, problems = scan_tar(both[1] / "train" / clean.shards[1].name, clean.members)
    assert np.array_equal(rows, ShardDataset(both[1] / "train").index.shard_entries(1)) and keys[0] == "0000000012"
    assert not problems
    assert not rows["degraded"].any() and not rows["degraded_bytes"].any() and rows["clean_bytes"].all()


def test_an_interrupted_making_goes_on_to_the_same_bytes(both, tmp_path):
    shutil.copytree(both[1].parent, tmp_path / "copy")
    out = tmp_path / "copy" / "shards"
    before = contents(out)
    for name in ("index.npy", "000001.tar"):
        (out / "train" / name).unlink()
    with pytest.raises(ShardsFailed, match="contents: clean .* pairs"):
        make_shards(config_of(out, contents="pairs"), show_progress=False)
    assert make_shards(config_of(out), show_progress=False).num_new_shards == 1 and contents(out) == before
    for path in (out / "train").iterdir():
        path.unlink()
    assert make_shards(config_of(out, num_workers=2), show_progress=False).num_new_shards == 5
    assert contents(out) == before


def test_damage_is_found_and_named(both, tmp_path):
    out = shutil.copytree(both[1], tmp_path / "shards")
    assert not [file for file in verify_shards(out) if file.problem]
    path = out / "train" / "000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    assert [file.name for file in verify_shards(out) if file.problem] == [str(path)]
    with pytest.raises(ShardError, match=facts("000001.tar", 12)):
        ShardDataset(out / "train").read(np.array([3, 12]))


@pytest.mark.parametrize("members", [[], ["a", "b", "c"], ["clean.npy", 3]])
def test_a_manifest_of_other_members_is_refused(both, tmp_path, members):
    out = shutil.copytree(both[1] / "train", tmp_path / "train")
    content = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(content | {"members": members}))
    with pytest.raises(ShardError, match="manifest.json"):
        ShardDataset(out)


def test_pairs_made_already_cannot_be_clean():
    with pytest.raises(ValueError, match="contents clean"):
        ShardsConfig(pairs="pairs", contents="clean")


def test_what_was_made_is_told(both, capsys):
    manifests = {split: read_manifest(Folder(both[1] / split)) for split in ("train", "val")}
    assert report(config_of(both[1]), Summary(manifests, 0, 5, ResizedPhotos(0, 0, 0, 0, 0))) == 0
    train, val = capsys.readouterr().out.splitlines()
    assert "60 clean tiles of 5 photos" in train and "dB" not in train
    assert "18 pairs of 3 photos" in val and "dB" in val


def test_the_doctor_says_what_is_missing(both, tmp_path):
    def told(**changes):
        settings = {"run": str(tmp_path / "run"), "model": ModelConfig(channels=3), "trackers": []} | changes
        found = doctor(DoctorConfig(shards=str(both[1]), **settings))
        return [finding.text for finding in found["shards"] if finding.level == "problem"], found["shards"]

    problems, _ = told()
    assert len(problems) == 1 and "degradation.crop_pixels" in problems[0]
    made = {"crop_pixels": 32, "damages": {"jpeg": {"quality": [5, 950]}}}
    problems, _ = told(degradation=DegradationConfig(**made))
    assert len(problems) == 1 and "damages.jpeg" in problems[0] and "950" in problems[0]
    made["damages"]["jpeg"]["quality"] = [5, 95]
    problems, findings = told(degradation=DegradationConfig(**made))
    assert not problems and any("60 clean tiles of 48x48x3" in finding.text for finding in findings)


def test_validation_on_clean_tiles_is_refused(both, tmp_path):
    manifest = replace(read_manifest(Folder(both[1] / "train")), split="val")
    config = small_config(tmp_path, both[1], model=ModelConfig(channels=3))
    with pytest.raises(ValueError, match="somewhere/val.*validation"):
        check_samples(config, "val", manifest, "somewhere/val")


QUALITIES = {"jpeg_quality": [5, 95]}


@pytest.mark.parametrize(("color", "subsampling"), [("rgb", "4:2:0"), ("rgb", "4:4:4"), ("luma", "4:2:0")])
def test_pairs_are_told_by_the_tables_of_their_photos_quality(tmp_path, color, subsampling):
    made = Degradation(**QUALITIES, jpeg_subsampling=subsampling)
    out = small_shards(tmp_path, tile_pixels=48, color=color, degradation=made, samples_per_shard=12)
    reader = ShardDataset(out / "train")
    assert reader.conditions(np.arange(3)) is None, "not asked for"
    reader.read_qualities()
    told = reader.conditions(np.arange(30))
    photos = photos_of(out / "train")
    assert len({photo.quality for photo in photos}) > 2
    for number, photo in enumerate(photos):  # 6 tiles a photo, two photos a shard
        buffer = io.BytesIO()
        options = {"subsampling": subsampling} if color == "rgb" else {}
        Image.new("RGB" if color == "rgb" else "L", (16, 16)).save(buffer, "JPEG", quality=photo.quality, **options)
        expected = jpeg_save_of(Image.open(buffer)).condition
        assert np.array_equal(told[6 * number : 6 * number + 6], np.tile(expected, (6, 1)))


def test_pairs_without_a_jpeg_tell_nothing(tmp_path):
    reader = ShardDataset(small_shards(tmp_path, degradation=Degradation(jpeg_quality=[], scale=2)) / "train")
    reader.read_qualities()
    assert reader.conditions(np.arange(3)) is None


def test_a_list_with_an_impossible_quality_is_refused(both, tmp_path):
    out = shutil.copytree(both[0] / "train", tmp_path / "train")
    listed = (out / "photos.jsonl").read_text()
    (out / "photos.jsonl").write_text(re.sub('"quality": 20', '"quality": 99999', listed, count=1))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["photos"] |= {"bytes": (out / "photos.jsonl").stat().st_size, "sha256": sha256_of(out / "photos.jsonl")}
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="photo 0.png.*99999"):
        ShardDataset(out).read_qualities()


class Told(SRCNN):
    """A network that adds to its input the tenth number that it is told, 0 where it is told nothing."""

    conditioned = True

    def forward(self, degraded, condition=None):
        added = 0 if condition is None else condition[:, 9].view(-1, 1, 1, 1)
        return degraded + added + 0 * super().forward(degraded)


def told_network():
    network = Told(ModelConfig(filters=(2, 2), channels=3))
    initialize(network, "pytorch", 0)
    return network


def test_a_conditioned_network_is_validated_with_what_is_known(both):
    reader = ShardDataset(both[0] / "val")
    plain = validate(told_network(), reader, Accelerator(cpu=True))
    reader.read_qualities()
    told = validate(told_network(), reader, Accelerator(cpu=True))
    assert plain["val/gain"] == 0
    added = reader.conditions(np.array([0]))[0, 9]
    clean, degraded = (tiles.astype(np.float64) for tiles in reader.read(np.arange(reader.num_samples)))
    restored = (degraded + 255 * added).clip(0, 255)
    assert told["val/psnr"] == pytest.approx(np.mean([psnr(*pair) for pair in zip(clean, restored)]), abs=1e-4)
    weights = np.array([0.299, 0.587, 0.114])
    for key, pixels in (("val/psnr_luma", restored), ("val/psnr_luma_in", degraded)):
        expected = np.mean([psnr(one @ weights, other @ weights) for one, other in zip(clean, pixels)])
        assert told[key] == pytest.approx(expected, abs=1e-4)


def test_conditions_are_for_networks_that_take_them(both):
    reader = ShardDataset(both[0] / "val")
    batch = next(val_batches(reader, small_config("run", "shards").stream, 5))
    assert batch.conditions is None and conditions_for(told_network(), batch) == []
    reader.read_qualities()
    batch = next(val_batches(reader, small_config("run", "shards").stream, 5))
    assert conditions_for(SRCNN(ModelConfig()), batch) == []
    assert conditions_for(told_network(), batch)[0].shape == (5, 22)


@pytest.mark.parametrize("loss", ["mse", "l1", "charbonnier"])
def test_the_loss_of_the_luma_is_added(loss):
    clean, degraded = torch.rand(2, 3, 3, 19, 23, generator=torch.Generator().manual_seed(0))
    conditions = torch.rand(3, 22, generator=torch.Generator().manual_seed(1))
    found, sums = LossAndScores(told_network(), 2, loss, luma_weight=0.7)(clean, degraded, conditions)
    difference = (degraded + conditions[:, 9].view(3, 1, 1, 1) - clean).double().numpy()[:, :, 2:-2, 2:-2]
    cost = {"mse": np.square, "l1": np.abs, "charbonnier": lambda part: np.sqrt(part**2 + 1e-6)}[loss]
    luma = np.einsum("c,nchw->nhw", [0.299, 0.587, 0.114], difference)
    assert found.item() == pytest.approx(3 * (cost(difference).mean() + 0.7 * cost(luma).mean()), rel=1e-5)
    assert sums[2].item() == found.item()
