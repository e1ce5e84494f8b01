"""srcnn doctor: what is wrong with shards, network, batches or memory, made for real, is named with its cure."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from examine import assert_note, assert_problem, content_of, examine, marked, num_found
from messages import says
from servers import FaultyServer
from small import small_shards, write_photos

from shards.plan import ShardsConfig
from shards.write import make_shards
from srcnn.__main__ import main
from srcnn.commands.doctor import CHECKS
from srcnn.models.srcnn import ModelConfig
from srcnn.photos.degradation import Degradation
from srcnn.training.optimizer import OptimizerConfig

SUBJECTS = list(CHECKS)
NUM_TRAIN = 75  # pairs of 32x32 that small_shards makes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("made"))


@pytest.fixture
def shards(made, tmp_path):
    """Shards that a test may damage."""
    return shutil.copytree(made, tmp_path / "shards")


def test_nothing_is_wrong_with_a_healthy_training_and_nothing_is_changed(shards, tmp_path):
    before = content_of(tmp_path)
    status, lines = examine(shards, run=tmp_path / "run")
    assert status == 0 and num_found(lines) == [0, 0]
    assert [line for line in lines[:-1] if not line.startswith(" ")] == SUBJECTS
    assert content_of(tmp_path) == before


def test_every_subject_is_looked_at_whatever_the_others_find(tmp_path):
    (tmp_path / "run").touch()
    status, lines = examine(tmp_path / "nowhere", run=tmp_path / "run", weights="none.pth")
    assert status == 1 and [line for line in lines[:-1] if not line.startswith(" ")] == SUBJECTS
    told = "\n".join(marked(lines, "PROBLEM"))
    assert says(told, "nowhere/train", "nowhere/val", "none.pth", f"{tmp_path}/run", "srcnn shards --photos")
    assert num_found(lines)[0] == 4


def test_every_missing_and_truncated_shard_is_named(shards):
    first, second = sorted((shards / "train").glob("*.tar"))[:2]
    first.unlink()
    size = second.stat().st_size
    second.write_bytes(second.read_bytes()[:-512])
    status, lines = examine(shards)
    missing, cut = marked(lines, "PROBLEM")
    assert status == 1 and str(first) in missing and says(cut, second, size - 512, size)


def test_verify_finds_a_damaged_byte_that_sizes_do_not_show(shards):
    last = sorted((shards / "train").glob("*.tar"))[-1]
    content = bytearray(last.read_bytes())
    content[4096 * 3 + 2000] ^= 1
    last.write_bytes(content)
    assert examine(shards)[0] == 0
    assert_problem(examine(shards, "--verify"), last, 63)


def test_a_split_without_photos_is_a_problem(tmp_path):
    write_photos(tmp_path / "photos", 2)
    config = ShardsConfig(photos=str(tmp_path / "photos"), out=str(tmp_path / "shards"), val_fraction=0.0,
                          resize="none", tile_pixels=32, num_workers=1)
    make_shards(config, show_progress=False)
    assert_problem(examine(tmp_path / "shards"), "shards/val", "--val")


def test_shards_that_were_not_made_to_the_end_are_made_by_the_same_command(shards):
    (shards / "val" / "manifest.json").unlink()
    assert_problem(examine(shards), "val/manifest.json", "interrupted")


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_a_list_of_photos_that_is_not_the_shards_is_a_problem(shards, damage):
    listing = shards / "train" / "photos.jsonl"
    content = listing.read_bytes().replace(b"photo 0", b"photo 7")
    listing.unlink() if damage == "missing" else listing.write_bytes(content)
    assert_problem(examine(shards), "train/photos.jsonl")


def test_half_written_files_beside_the_shards_are_noted(shards):
    (shards / "train" / ".writing-abc.tar").touch()
    assert_note(examine(shards), "train")


def test_photos_in_both_splits_are_named(shards, tmp_path):
    """The training split of one set beside the validation split of another, made of the same photos."""
    other = small_shards(tmp_path / "both", num_train=3)
    shutil.rmtree(shards / "val")
    shutil.copytree(other / "train", shards / "val")
    assert_problem(examine(shards), 3, "photo 0.png", "photo 1.png", "photo 2.png")


def test_splits_that_were_degraded_differently_are_noted(shards, tmp_path):
    other = small_shards(tmp_path / "other", degradation=Degradation(jpeg_quality=40))
    shutil.rmtree(shards / "val")
    shutil.copytree(other / "val", shards / "val")
    assert_note(examine(shards), "degradation")


def test_tiles_smaller_than_the_border_are_a_problem(shards):
    model = ModelConfig(kernels=(25, 5, 5), filters=(2, 2))
    status, lines = examine(shards, loss_crop=True, model=model)
    assert status == 1 and all(says(line, 32, 33) for line in marked(lines, "PROBLEM"))


def test_tiles_of_other_channels_are_a_problem(shards):
    status, lines = examine(shards, model=ModelConfig(channels=3))
    assert status == 1 and says(marked(lines, "PROBLEM")[0], "model.channels", 1, 3)


def test_a_batch_larger_than_the_training_split_is_a_problem(shards):
    examined = examine(shards, "--ranks", 4, batch_size_per_process=19)
    assert_problem(examined, 76, NUM_TRAIN, "batch_size")
    assert examine(shards, batch_size=NUM_TRAIN)[0] == 0


def test_lanes_that_ranks_would_share_are_noted(shards):
    lanes = ["--stream.order", "runs", "--stream.run_samples", 1, "--ranks", 2]  # two lanes: there are few tiles
    assert_note(examine(shards, *lanes, batch_size=3), 3, 2, "stream.num_lanes")
    for arguments, batch_size in ((lanes, 4), ([], 3)):
        assert num_found(examine(shards, *arguments, batch_size=batch_size)[1]) == [0, 0]


def test_more_ranks_than_tiles_of_a_batch_are_a_problem(shards):
    assert_problem(examine(shards, "--ranks", 3, batch_size=2), "batch_size", 2, 3)


@pytest.mark.parametrize(
    "changes,told",
    [({"batch_size": 9}, ["batch_size", 9, 2]),
     ({"batch_size": 50}, [75, 1.5, 50]),
     ({"validate_every_samples": 129}, ["validate_every_samples", 129, "total_samples", 128]),
     ({"log_every_samples": 7}, ["log_every_samples", 7, 8]),
     ({"total_samples": 64}, ["total_samples", 64, 75]),
     ({"optimizer": OptimizerConfig(warmup_samples=128)}, ["warmup_samples", 128])],
)
def test_settings_that_may_not_be_meant_are_noted(shards, changes, told):
    assert_note(examine(shards, "--ranks", 2, "--port", 0, **changes), *told)


def test_ranks_come_from_the_environment_unless_given(shards, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert any(says(line, 4, 2, 16, 8) for line in examine(shards)[1]), "ranks, machines, tiles a step, steps"
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert any(says(line, 3, 2, 12, 11) for line in examine(shards)[1])
    assert any(says(line, 1, 4, 32) for line in examine(shards, "--ranks", 1, "--machines", 1)[1])


def test_a_resident_set_that_does_not_fit_is_a_problem(shards):
    ranks = 10_000_000  # on one machine, each with its own copy
    status, lines = examine(shards, "--ranks", ranks, "--stream.resident", "host", batch_size=ranks)
    assert status == 1 and any("--stream.resident no" in line for line in marked(lines, "PROBLEM"))
    assert examine(shards, "--stream.resident", "host")[0] == 0


def test_windows_larger_than_the_memory_are_a_problem(shards):
    stream = ["--stream.order", "runs", "--stream.window_samples", 10**10]
    assert_problem(examine(shards, *stream), "20480.0", "GB", "stream.window_samples")


def test_weights_of_another_network_are_a_problem(shards):
    examined = examine(shards, weights="srcnn-915-q20")
    assert_problem(examined, "srcnn-915-q20", "filters=(64, 32)", "filters=(8, 4)")


def test_weights_that_are_not_there_are_a_problem(shards):
    assert_problem(examine(shards, weights="none.pth"), "none.pth", "srcnn-915-blind")


def test_shards_on_a_server_are_looked_at_one_by_one(shards):
    with FaultyServer(shards) as server:
        status, lines = examine(f"{server.url}")
        assert status == 0 and any(says(line, 75, "32x32") for line in marked(lines, "ok"))
        names = {request.path for request in server.asked(".tar")}
        assert names == {str(path.relative_to(shards)) for path in shards.rglob("*.tar")}
        first, second = sorted((shards / "train").glob("*.tar"))[:2]
        first.unlink()
        size = second.stat().st_size
        second.write_bytes(second.read_bytes()[:-512])
        status, lines = examine(f"{server.url}")
        missing, cut = marked(lines, "PROBLEM")
        assert status == 1 and first.name in missing and says(cut, second.name, size - 512, size)


def test_a_cache_without_room_is_noted(shards, tmp_path):
    cache = ["--stream.access.cache", tmp_path / "file" / "cache"]
    (tmp_path / "file").touch()
    with FaultyServer(shards) as server:
        assert_note(examine(server.url, *cache), "stream.access.cache", f"{tmp_path}/file/cache")
        assert num_found(examine(server.url, "--stream.access.cache", tmp_path / "cache")[1]) == [0, 0]
        small = ["--stream.access.cache", tmp_path / "cache", "--stream.access.cache_gigabytes", "0.0002"]
        assert_note(examine(server.url, *small), "stream.access.cache_gigabytes", 0.0002, "100%")
        kept = ["--stream.lanes", "kept", "--ranks", 4, "--machines", 4]
        (note,) = (line for line in examine(server.url, *small, *kept)[1] if "stream.access.cache" in line)
        assert says(note, 0.0002, "25%")
    assert not (tmp_path / "cache").exists()


def test_a_server_that_does_not_answer_is_a_problem():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    status, lines = examine(f"http://127.0.0.1:{port}/shards", "--stream.access.give_up_seconds", "0.3")
    first = marked(lines, "PROBLEM")[0]
    assert status == 1 and f"127.0.0.1:{port}/shards/train" in first


def test_the_password_of_an_address_is_not_shown(shards):
    with FaultyServer(shards) as server:
        address = server.url.replace("://", "://somebody:geheim@")
        status, lines = examine(address, model=ModelConfig(channels=3))
    assert status == 1 and says(marked(lines, "PROBLEM")[0], "model.channels", 3)
    assert "geheim" not in "\n".join(lines)


def test_an_unknown_setting_is_wrong_usage(shards, capsys):
    with pytest.raises(SystemExit) as ended:
        examine(shards, "--rank", 2)
    assert ended.value.code == 2 and "ranks" in capsys.readouterr().err


def test_a_setting_that_was_removed_is_refused_by_name(shards, capsys):
    with pytest.raises(SystemExit) as ended:
        examine(shards, "--node_metrics", "true")
    assert ended.value.code == 2 and "node_metrics" in capsys.readouterr().err


def test_help_explains_the_settings_of_a_training_and_of_its_launch(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(words in shown for words in ("srcnn doctor", "--ranks", "--port", "--verify", "--shards"))


@pytest.mark.slow
def test_the_command_says_it_to_a_shell(made, tmp_path):
    config = Path(__file__).parents[2] / "configs" / "train.yaml"
    settings = ["--config", str(config), "--shards", str(made), "--run", str(tmp_path / "run"), "--trackers", "[]"]
    command = [sys.executable, "-m", "srcnn", "doctor", *settings]
    whole = subprocess.run(command, capture_output=True, text=True, check=False)
    assert whole.returncode == 0 and num_found(whole.stdout.splitlines())[0] == 0, whole.stdout + whole.stderr
    refused = subprocess.run([*command, "--shards", "nowhere"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "nowhere/train/manifest.json" in refused.stdout
    assert not refused.stderr and not (tmp_path / "run").exists()
