"""Networks in folders and in repositories of the hub, which here is a server of our own (hub_server.py)."""

import json
import logging
import os
import pickle
import re
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import TOKEN, hub_server, use_hub
from messages import facts, lines_with, says
from wandb_server import closed_port

from srcnn.models import hub
from srcnn.models.srcnn import SRCNN, ModelConfig
from srcnn.models.weight_files import WEIGHTS
from srcnn.models.weights import initialize, load_model, save_model
from srcnn.runtime.settings import to_yaml
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.tracking.history import STEP_KEY, read_metrics
from srcnn.training.report import best_scores, training_card

SHIPPED = "srcnn-915-q20"
PUSH = """
import sys
from srcnn import SRCNN
network = SRCNN.from_pretrained(sys.argv[1])
print(network.push_to_hub("me/photos", private=True, commit_message="The first", license="mit"))
"""
PULL = """
import sys
from srcnn import SRCNN, save_model
from pathlib import Path
save_model(SRCNN.from_pretrained("me/photos", revision=sys.argv[2]), Path(sys.argv[1]))
"""


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def some_model(seed=0, **config):
    model = SRCNN(ModelConfig(filters=(8, 4), **config), centred=True)
    initialize(model, "pytorch", seed)
    return model


def assert_same(found, expected):
    assert found.config == expected.config and not found.training
    for name, tensor in expected.without_centering().state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def saved(tmp_path, model=None, name="saved", **options):
    (model or some_model()).save_pretrained(tmp_path / name, **options)
    return tmp_path / name


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(monkeypatch):
    """The hub, of this process too."""
    with hub_server() as server:
        use_hub(monkeypatch, server.url)
        yield server


def hub_process(server, tmp_path, script, *arguments):
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
                                "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_network_pushed_by_one_process_is_what_another_gets(tmp_path):
    model = some_model(residual=True, kernels=(9, 5, 5))
    with hub_server() as server:
        address = hub_process(server, tmp_path / "first", PUSH, saved(tmp_path, model))
        pushed = server.repositories["me/photos"]
        sha = pushed.branches["main"]
        assert address == f"{server.url}/me/photos/commit/{sha}"
        assert pushed.private and pushed.messages[-1] == "The first"
        assert set(pushed.commits[sha]) == {".gitattributes", "model.safetensors", "config.json", "README.md"}
        hub_process(server, tmp_path / "second", PULL, tmp_path / "pulled.safetensors", sha)
        assert not any("README" in request for request in server.seen)
    assert_same(load_model(tmp_path / "pulled.safetensors"), model)


def test_a_second_push_and_one_to_a_branch_leave_the_others_be(tmp_path, server):
    first, second, third = (some_model(seed) for seed in range(3))
    for model, options in ((first, {}), (second, {}), (third, {"revision": "trial"})):
        model.push_to_hub("me/photos", token=TOKEN, card="# By hand, 31.27 dB\n", license="mit", **options)
    pushed = server.repositories["me/photos"]
    assert_same(SRCNN.from_pretrained("me/photos", cache_dir=tmp_path), second)
    assert_same(SRCNN.from_pretrained("me/photos", cache_dir=tmp_path, revision="trial"), third)
    of_first = list(pushed.commits)[1]
    assert_same(SRCNN.from_pretrained("me/photos", cache_dir=tmp_path, revision=of_first), first)
    assert pushed.commits[pushed.branches["trial"]]["README.md"].endswith(b"---\n\n# By hand, 31.27 dB\n")


def test_importing_the_network_does_not_import_the_hubs_client():
    script = "import sys, srcnn.models.weights; assert not {'huggingface_hub', 'srcnn.models.hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_repository_of_a_pickle_only_is_refused_and_nothing_of_it_fetched(tmp_path, server):
    server.add("they/photos", {"pytorch_model.bin": pickle.dumps(Evil()), "config.json": b"{}"})
    with pytest.raises(FileNotFoundError, match=facts("they/photos", "model.safetensors", "pytorch_model.bin")):
        SRCNN.from_pretrained("they/photos", cache_dir=tmp_path)
    assert not any("resolve" in request for request in server.seen)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileNotFoundError, match=facts(folder, "model.safetensors", "pytorch_model.bin")):
        SRCNN.from_pretrained(folder)


@pytest.mark.parametrize("changes,told", [
    ({"model.safetensors": pickle.dumps(Evil())}, ["model.safetensors"]),
    ({"config.json": b'{"kernels": [9, 5, 5]}'}, ["config.json", "kernels", [9, 5, 5], [9, 1, 5]]),
    ({"config.json": b'{"residual": true}'}, ["config.json", "residual", True, False]),
    ({"config.json": b'{"model_type": "bert"}'}, ["config.json", "SRCNN"]),
    ({"config.json": b"[" * 100_000}, ["config.json"]),
    ({"config.json": b"[" + b" " * (1 << 20)}, ["config.json", (1 << 20) + 1, 1 << 20]),
])
def test_what_is_damaged_is_refused_by_name(tmp_path, server, changes, told):
    server.add("they/photos", contents(saved(tmp_path)) | changes)
    with pytest.raises(ValueError, match=facts(*told)):
        SRCNN.from_pretrained("they/photos", cache_dir=tmp_path / "cache")


def test_weights_that_are_too_large_are_not_fetched(tmp_path, server):
    server.add("they/photos", contents(saved(tmp_path)))
    server.sizes["model.safetensors"] = 1 << 40
    with pytest.raises(ValueError, match=facts("they/photos", "model.safetensors", 1 << 40)):
        SRCNN.from_pretrained("they/photos", cache_dir=tmp_path / "cache")
    assert not any("resolve" in request for request in server.seen)


def test_weights_in_half_the_bits_and_without_a_config_are_read(tmp_path, server):
    from safetensors.torch import save

    state = {name: tensor.half() for name, tensor in some_model().without_centering().state_dict().items()}
    server.add("they/photos", {"model.safetensors": save(state)})
    found = SRCNN.from_pretrained("they/photos", cache_dir=tmp_path)
    assert torch.equal(found.conv1.weight, state["conv1.weight"].float())


def test_a_private_or_missing_repository_or_revision_names_the_cure(tmp_path, server):
    some_model().push_to_hub("me/secret", private=True, token=TOKEN, license="mit")
    for repo_id in ("me/secret", "they/nothing"):
        with pytest.raises(FileNotFoundError, match=facts(repo_id, "hf auth login")):
            SRCNN.from_pretrained(repo_id, cache_dir=tmp_path, token=False)
    assert_same(SRCNN.from_pretrained("me/secret", cache_dir=tmp_path, token=TOKEN), some_model())
    with pytest.raises(FileNotFoundError, match=facts("me/secret", "v9")):
        SRCNN.from_pretrained("me/secret", cache_dir=tmp_path, token=TOKEN, revision="v9")


def test_a_push_that_is_not_allowed_names_the_cure(server):
    for repo_id, token in (("me/photos", False), ("they/photos", TOKEN)):
        with pytest.raises(PermissionError, match=facts(repo_id, server.url, "hf auth login")):
            some_model().push_to_hub(repo_id, token=token, license="mit")
    assert not server.repositories


def test_without_a_hub_the_copy_in_the_cache_is_used_and_said(tmp_path, monkeypatch, server, caplog):
    server.add("they/photos", contents(saved(tmp_path)))
    SRCNN.from_pretrained("they/photos", cache_dir=tmp_path / "cache")
    num_requests = len(server.seen)
    assert_same(SRCNN.from_pretrained("they/photos", cache_dir=tmp_path / "cache", local_files_only=True), some_model())
    assert len(server.seen) == num_requests and not caplog.records
    use_hub(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    with caplog.at_level(logging.WARNING, "srcnn"):
        assert_same(SRCNN.from_pretrained("they/photos", cache_dir=tmp_path / "cache"), some_model())
    assert len(caplog.records) == 1 and says(caplog.text, hub.constants.ENDPOINT, "cache")


@pytest.mark.parametrize("trouble", ["closed", "silent", "broken", "offline", "not asked"])
def test_without_a_hub_and_a_copy_one_error_names_the_cure_at_once(tmp_path, monkeypatch, server, trouble):
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.2)
    server.silent, server.status = trouble == "silent", 503 if trouble == "broken" else 0
    if trouble == "closed":
        use_hub(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", trouble == "offline")
    with pytest.raises(ConnectionError, match=facts("they/photos", tmp_path)):
        SRCNN.from_pretrained("they/photos", cache_dir=tmp_path, local_files_only=trouble == "not asked")
    assert len(server.seen) <= 1  # the hub's client by itself would try again for a minute
    if trouble == "closed":
        with pytest.raises(ConnectionError, match=facts(hub.constants.ENDPOINT)):
            some_model().push_to_hub("me/photos", token=TOKEN, license="mit")


def test_what_is_on_the_disk_goes_before_the_hub(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, name="they/photos")
    assert_same(SRCNN.from_pretrained("they/photos"), some_model())
    save_model(some_model(), tmp_path / "they" / "mine.safetensors")
    assert_same(SRCNN.from_pretrained("they/mine.safetensors"), some_model())
    assert_same(SRCNN.from_pretrained(SHIPPED), load_model(SHIPPED))
    (tmp_path / "they" / "empty").mkdir()
    for nothing in ("they/empty", "nonesuch", "../no/such/run", "/no/such"):
        with pytest.raises(FileNotFoundError, match=re.escape(nothing)):
            SRCNN.from_pretrained(nothing)
    with pytest.raises(ValueError, match="revision"):
        SRCNN.from_pretrained("they/photos", revision="main")
    assert not server.seen


def test_a_saved_folder_has_weights_config_and_a_card_that_claims_nothing(tmp_path):
    folder = saved(tmp_path, some_model(channels=3, residual=True))
    assert json.loads((folder / "config.json").read_text()) == {
        "model_type": "srcnn", "network": "SRCNN",
        "kernels": [9, 1, 5], "filters": [8, 4], "channels": 3, "residual": True,
    }
    header, text = header_and_text(folder)
    assert header["library_name"] == "srcnn" and not {"license", "metrics", "model-index"} & header.keys()
    assert says(text, 2291, "RGB") and "PSNR" not in text
    assert sum(parameter.numel() for parameter in SRCNN.from_pretrained(folder).parameters()) == 2291


def header_and_text(folder):
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_a_card_is_taken_as_text_or_file_and_gets_a_header(tmp_path):
    shipped = WEIGHTS / f"{SHIPPED}.md"
    header, text = header_and_text(saved(tmp_path, load_model(SHIPPED), "shipped", card=shipped))
    assert text == "\n" + shipped.read_text(encoding="utf-8")
    assert header["metrics"] == ["psnr", "ssim"]
    own = "---\nlicense: mit\n---\n# Mine\n"
    assert (saved(tmp_path, card=own) / "README.md").read_text() == own
    with pytest.raises(ValueError, match=facts("card.md", "Path")):
        saved(tmp_path, card="card.md")


def scores_of(folder):
    """The scores in a card by the hub's own reader: {title: {metric: value}}."""
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    scores = {}
    for result in card.data.eval_results:
        assert result.task_type == "image-to-image"
        scores.setdefault(result.dataset_name, {})[result.metric_type] = result.metric_value
    return card.data, scores


@pytest.mark.parametrize("name", ["srcnn-915-q20", "srcnn-915-x3", "unet-jpeg"])
def test_shipped_weights_saved_again_keep_their_card_licence_and_scores(tmp_path, name):
    load_model(name).save_pretrained(tmp_path / "first")
    type(load_model(name)).from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (contents(tmp_path / folder) for folder in ("first", "second"))
    assert all(first[file] == second[file] for file in ("README.md", "config.json"))
    assert_same(load_model(tmp_path / "second"), load_model(name))
    assert header_and_text(tmp_path / "second")[1] == "\n" + (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    data, scores = scores_of(tmp_path / "second")
    expected = json.loads((WEIGHTS / f"{name}.json").read_text())["scores"]
    assert (data.license, data.model_name) == ("apache-2.0", name) and scores.keys() == expected.keys()
    for title, row in expected.items():
        assert scores[title] == pytest.approx({key: row[key] for key in ("psnr", "ssim")}, abs=1e-4)
    with pytest.raises(ValueError, match=facts(name, "apache-2.0", "mit")):
        load_model(name).save_pretrained(tmp_path / "third", license="mit")


def test_weights_that_were_trained_further_lose_the_shipped_card(tmp_path):
    model = load_model(SHIPPED)
    with torch.no_grad():
        model.conv3.bias += 1e-6
    header, text = header_and_text(saved(tmp_path, model))
    assert "license" not in header and "PSNR" not in text


@pytest.mark.parametrize("options", [{}, {"card": "# Mine"}, {"card": "---\ntags: [x]\n---\n# Mine"},
                                     {"card": "---\nlicense: unknown\n---\n# Mine"}], ids=str)
def test_nothing_is_pushed_without_a_licence(server, options):
    with pytest.raises(ValueError, match=facts("license=")):
        some_model().push_to_hub("me/photos", token=TOKEN, **options)
    assert not server.seen


def test_a_licence_comes_from_the_caller_the_card_or_the_shipped_weights(server):
    own = "---\nlicense: cc0-1.0\nlibrary_name: srcnn\ntags: [x]\n---\n# Mine"
    for model, options, expected in ((some_model(), {"license": "mit"}, "mit"), (load_model(SHIPPED), {}, "apache-2.0"),
                                     (some_model(), {"card": own}, "cc0-1.0")):
        model.push_to_hub("me/photos", token=TOKEN, **options)
        pushed = server.repositories["me/photos"]
        assert f"license: {expected}\n" in pushed.commits[pushed.branches["main"]]["README.md"].decode()
    with pytest.raises(ValueError, match=facts("mit", "header")):
        some_model().push_to_hub("me/photos", token=TOKEN, card=own, license="mit")


def make_run(folder, model, points):
    (folder / "best").mkdir(parents=True)
    save_model(model, folder / "best" / "model.safetensors")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    (folder / "config.yaml").write_text("total_samples: 96000\nseed: 3\noptimizer:\n  name: adam\n")
    write_training_card(folder)
    return folder


def write_training_card(run):
    """What the report of a run says of the training."""
    (run / "report").mkdir(exist_ok=True)
    points = read_metrics(run)
    (run / "report" / "card.md").write_text(training_card(read_yaml(run / "config.yaml"), points))
    (run / "report" / "scores.json").write_text(json.dumps(best_scores(points)))


def point(samples, psnr):
    return {STEP_KEY: samples, "val/psnr_in": 30.07, "val/psnr": psnr, "val/gain": psnr - 30.07,
            "val/gain_percent": 100 * (psnr / 30.07 - 1), "val/ssim_in": 0.851, "val/ssim": 0.872}


def test_a_card_of_a_run_tells_its_best_validation(tmp_path):
    points = [point(32000, 31.0), {STEP_KEY: 40000, "train/loss": 0.1}, point(64000, 31.27), point(96000, 31.1)]
    run = make_run(tmp_path / "run", some_model(), points)
    header, text = header_and_text(saved(tmp_path, run=run))
    assert header["metrics"] == ["psnr", "ssim"]
    assert says(text, 64000, 96000, "optimizer adam", "seed 3")
    assert "| 64,000 | 30.07 | 31.27 | 1.20 | 4.0 | 0.8510 | 0.8720 |" in text
    assert "31.00" not in text
    data, scores = scores_of(tmp_path / "saved")
    assert data.model_name == "run" and "license" not in header
    assert [*scores.values()] == [{"psnr": 31.27, "ssim": 0.872}]


def test_no_card_is_made_of_another_run(tmp_path):
    run = make_run(tmp_path / "run", some_model(), [point(32000, 31.0)])
    with pytest.raises(ValueError, match=facts(run, "weights")):
        saved(tmp_path, some_model(1), run=run)
    (run / "metrics.jsonl").write_text(json.dumps({STEP_KEY: 1, "train/loss": 0.1}) + "\n")
    write_training_card(run)
    with pytest.raises(ValueError, match=facts(run, "validat")):
        saved(tmp_path, run=run)
    with pytest.raises(ValueError, match=facts("card", "run")):
        saved(tmp_path, card="# Card", run=run)
    os.utime(run / "best" / "model.safetensors", (2**31, 2**31))
    with pytest.raises(FileNotFoundError, match=facts("card.md", "srcnn report", run)):
        saved(tmp_path, run=run)
    assert not (tmp_path / "saved").exists()


def test_a_card_is_made_of_what_a_training_writes(tmp_path):
    from small import small_config

    config = small_config(tmp_path / "run", tmp_path / "shards")
    run = make_run(tmp_path / "run", some_model(), [point(64, 31.0)])
    (run / "config.yaml").write_text(to_yaml(config))
    write_training_card(run)
    assert lines_with(header_and_text(saved(tmp_path, run=run))[1], "Training", 64)
