"""What the tracker uses of wandb beside what is documented is there, and means what it is taken for."""

import sys

import wandb

from srcnn.tracking import wandb_tracker


def test_the_setting_keeps_the_command_line_from_wandb(monkeypatch):
    monkeypatch.delenv("WANDB_X_DISABLE_META", raising=False)
    for word, is_secret in (("https://ann:hunter2@host/x", True), ("--run", False)):
        monkeypatch.setattr(sys, "argv", ["train.py", word])
        assert wandb.Settings(**wandb_tracker._settings()).x_disable_meta is is_secret


def test_a_run_and_the_server_have_the_steps_that_the_tracker_asks_for():
    for owner, name in ((wandb.Run, "starting_step"), (wandb.apis.public.Run, "lastHistoryStep")):
        assert isinstance(vars(owner)[name], property), name


def test_a_run_that_is_new_starts_at_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="disabled", dir=str(tmp_path))
    assert run.starting_step == 0
    run.finish()
