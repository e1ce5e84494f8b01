"""A run folder of a stranger: nothing outside it is read, written or removed, no pipe waited for, nobody called."""

from __future__ import annotations

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from small import small_config, small_shards

from srcnn.__main__ import main
from srcnn.models.weights import load_model
from srcnn.runtime.distributed import DistributedError
from srcnn.runtime.errors import UserError
from srcnn.runtime.run_folder import NAMES, check_run_folder
from srcnn.tracking.cluster_job import read_starts, record_start
from srcnn.tracking.history import History, read_metrics
from srcnn.training import checkpoint
from srcnn.training.report import write_report
from srcnn.training.resume import is_same_job
from srcnn.training.trainer import Trainer, train

LINKS = (".job", ".lock", "jobs.jsonl", "metrics.jsonl", "skipped.jsonl", "config.yaml", "checkpoint.pth", "report",
         "report/loss.png", "report/card.md", "checkpoints", "checkpoints/step-00000099", "best", "wandb", "srcnn",
         "tensorboard")
FOLDERS = ("report", "checkpoints", "wandb", "srcnn", "tensorboard", "best")
DEEP = b"[" * 5000


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return small_shards(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shards):
    run = tmp_path_factory.mktemp("trained") / "run"
    train(small_config(run, shards, trackers=["tensorboard"]))
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run", symlinks=True)


@pytest.fixture
def mine(tmp_path, trained):
    """A folder that belongs to the user, with what a link could aim at."""
    shutil.copytree(trained, tmp_path / "mine/folder", symlinks=True)
    (tmp_path / "mine/file").write_text("precious")
    return tmp_path / "mine"


def content(folder):
    return {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def replace(path, make):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def attempts(run, shards):
    """Every command with a run folder; the message of each that was refused."""
    told = []
    for work in (lambda: train(small_config(run, shards, total_samples=96)),
                 lambda: train(small_config(run, shards, total_samples=96, fresh=True)),
                 lambda: write_report(run, None)):
        with pytest.raises((DistributedError, UserError)) as error:
            work()
        told.append(str(error.value))
    return told


def commands(run, shards, capsys):
    told = []
    for arguments in (["report", str(run)], ["report", str(run), "--shards", str(shards)], ["sync", str(run)],
                      ["sync", str(run), "--tracker", "mlflow"],
                      ["doctor", f"--run={run}", f"--shards={shards}", "--trackers=[]"]):
        assert main(arguments) == 1, arguments
        captured = capsys.readouterr()
        told.append(captured.out + captured.err)
    return told


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_a_run_is_named_by_every_command_and_what_it_leads_to_stays(run, mine, shards, name, capsys):
    for target in (mine / "file", mine / "folder", mine / "new"):
        replace(run / name, lambda path, target=target: path.symlink_to(os.path.relpath(target, path.parent)))
        before = content(mine)
        with pytest.raises(UserError, match=name):
            check_run_folder(run)
        if target.name == ("folder" if name in FOLDERS else "file"):
            told = [*attempts(run, shards), *commands(run, shards, capsys)]
            assert all(name in text for text in told), told
        assert content(mine) == before


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize("name", LINKS)
def test_a_pipe_or_device_in_a_run_is_named_and_not_waited_for(run, name, make):
    replace(run / name, make)
    with pytest.raises(UserError, match=name):
        check_run_folder(run)


def test_the_readers_of_a_run_follow_no_links_and_wait_for_no_pipes_by_themselves(tmp_path, mine, caplog):
    before = content(mine)
    for name in ("metrics.jsonl", "jobs.jsonl", ".job"):
        (tmp_path / name).symlink_to(mine / "file")
    for _ in range(2):
        record = History(tmp_path, 10)
        record.add({"samples": 3})
        assert "metrics.jsonl cannot be written" in caplog.text
        record_start(tmp_path, 0)
        assert read_starts(tmp_path).lines == () and not is_same_job(tmp_path)
        with pytest.raises((OSError, UserError), match=r"metrics\.jsonl"):
            read_metrics(tmp_path)
        for name in ("metrics.jsonl", "jobs.jsonl", ".job"):
            replace(tmp_path / name, os.mkfifo)
        caplog.clear()
    assert content(mine) == before


def test_a_checkpoint_with_a_pipe_is_damaged(run):
    newest = checkpoint.latest(run)
    listed = json.loads((newest / "files.json").read_text())
    listed["model.safetensors"]["bytes"] = 0
    (newest / "files.json").write_text(json.dumps(listed))
    replace(newest / "model.safetensors", os.mkfifo)
    assert "model.safetensors" in checkpoint.find_corruption(newest)
    assert checkpoint.latest(run) != newest


def test_weights_are_not_read_through_a_link_out_of_a_run(run, mine):
    replace(run / "best", lambda path: path.symlink_to("../mine/folder/best"))
    with pytest.raises(UserError, match="best"):
        load_model(run)


@pytest.mark.parametrize("name", ["wandb/settings", ".wandb/settings"])
def test_settings_of_wandb_in_a_run_are_refused(run, shards, name, monkeypatch, capsys):
    monkeypatch.chdir(run)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with server() as (address, requests):
        replace(run / name, lambda path: path.write_text(f"[default]\nbase_url = {address}\n"))
        told = [*attempts(Path("."), shards), *commands(Path("."), shards, capsys)]
    assert all(name in text for text in told) and not requests


def test_links_within_a_run_such_as_those_of_wandb_are_its_own(run, shards):
    (run / "wandb/run-1").mkdir(parents=True)
    (run / "wandb/latest-run").symlink_to("run-1")
    (run / "wandb/debug.log").symlink_to("run-2/logs/debug.log")
    (run / "wandb/run-1/logs").mkdir()
    (run / "wandb/run-1/logs/debug-core.log").symlink_to("/home/another/.cache/wandb/logs/core-debug-1.log")
    check_run_folder(run)
    run = run.rename(run.with_name("moved"))
    train(small_config(run, shards, total_samples=96))
    (run.with_name("link")).symlink_to(run)
    check_run_folder(run.with_name("link"))


def test_a_training_makes_no_names_that_are_not_checked(trained):
    assert {path.name for path in trained.iterdir()} <= set(NAMES)
    made = {"best", "checkpoints", "metrics.jsonl", "report", "tensorboard"}
    assert {path.name for path in trained.iterdir()} >= made


@pytest.mark.parametrize("line", [b'{"samples": 3, "x": ' + DEEP, b'{"samples": 1' + b"0" * 400 + b"}",
                                  b'{"samples": "12"}', b'{"samples": 1e999}', b'{"samples": NaN}', b'{"samples": -1}',
                                  b'{"samples": 3, "x": "<b>"}', b"\xff\xfe", b"7"], ids=range(9))
def test_a_run_with_a_strange_line_of_metrics_goes_on_and_is_reported(run, shards, line):
    metrics = run / "metrics.jsonl"
    whole = read_metrics(run)
    metrics.write_bytes(line + b"\n" + metrics.read_bytes())
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_metrics(run)
    record = History(run, 64)
    assert record.points() == whole and read_metrics(run) == whole


@pytest.mark.parametrize("line", [b'{"tags": [], "facts": {"a": ' + DEEP, b'{"facts": {}, "tags": 5}', b'{"facts": 3}',
                                  b"\xff", b"[]", b'{"facts": {}}'], ids=range(6))
def test_strange_lines_of_starts_are_left_out(tmp_path, line):
    (tmp_path / "jobs.jsonl").write_bytes(line + b"\n")
    history = record_start(tmp_path, 5)
    assert len(history.lines) == 1 and history.group == "" and history.tags == () and len(history.settings()) == 1
    assert len(read_starts(tmp_path).lines) == 1


def test_a_job_file_that_is_no_text_is_of_no_job(run, shards, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for content in (b"\xff\xfe\x00", b"x" * 100_000, b"[" * 5000, b"[]", b"7", b'{"id": 7}',
                    b'{"id": "7", "requeues": "0", "launchers": 5}'):
        (run / ".job").write_bytes(content)
        assert not is_same_job(run)
    trainer = Trainer(small_config(run, shards))
    trainer.resume()
    assert json.loads((run / ".job").read_text())["id"] == "7"
    trainer.close()


class server:
    """A server of the stranger's, and the requests that it got."""

    def __enter__(self):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                self.send_error(404)

            do_POST = do_HEAD = do_GET

            def log_message(self, *_): ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.http.server_port}", requests

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def test_a_report_calls_no_address_that_only_the_run_names(run, shards, capsys):
    with server() as (address, requests):
        (run / "config.yaml").write_text(f"shards: {address}/theirs\noverfit_tiles: 0\n")
        assert main(["report", str(run)]) == 1 and not requests
        assert f"--shards {address}/theirs" in capsys.readouterr().err
        assert main(["report", str(run), "--shards", f"{address}/mine"]) == 1
        assert requests and "--shards names others" in capsys.readouterr().err
    assert main(["report", str(run), "--shards", str(shards)]) == 0


@pytest.mark.parametrize("text", ["shards: !!python/object/apply:os.system [id]\n", "shards: a\n---\nshards: b\n",
                                  "shards: a\noverfit_tiles: x\n", "shards: [1, 2]\noverfit_tiles: 0\n", "[]\n",
                                  "shards: a\nshards: b\noverfit_tiles: 0\n", "shards: a\noverfit_tiles: true\n", "",
                                  "shards: a\noverfit_tiles: -1\n"])
def test_odd_settings_of_a_run_are_named(run, text, capsys):
    (run / "config.yaml").write_text(text)
    assert main(["report", str(run)]) == 1
    assert str(run / "config.yaml") in capsys.readouterr().err


def test_a_card_takes_no_markup_from_the_settings_of_a_run(run, shards):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", 'seed: "<img src=//host/x>"').replace(
        "  name: adam", '  name: "[free](http://host)"'))
    assert main(["report", str(run)]) == 0
    card = (run / "report/card.md").read_text()
    assert "host" not in card and "of 64 tiles" in card
    state = load_model(run).state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
