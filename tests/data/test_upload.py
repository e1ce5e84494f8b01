"""`srcnn push-shards`: a folder of shards on the hub, which here is a server of our own."""

import pytest
from conftest import make
from hub_server import TOKEN, hub_server, use_hub
from messages import facts, says

from srcnn.__main__ import main
from srcnn.data import upload


@pytest.fixture
def server(monkeypatch):
    with hub_server() as server:
        use_hub(monkeypatch, server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path, photos_folder, capsys):
    assert make("--photos", photos_folder(4), "--out", tmp_path / "out") == 0
    return tmp_path / "out"


def license_it(folder, name="cc0-1.0"):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: unknown", f"license: {name}"))


def test_the_dataset_is_the_folder(server, folder, capsys):
    license_it(folder)
    (folder / ".secret").write_text("mine")
    (folder / "train" / "notes.txt").write_text("mine")
    assert main(["push-shards", str(folder), "me/tiles", "--private"]) == 0
    assert f"{server.url}/datasets/me/tiles" in capsys.readouterr().out
    pushed = server.repositories["me/tiles"]
    files = pushed.commits[pushed.branches["main"]]
    names = {"README.md"} | {f"{split}/{path.name}" for split in ("train", "val") for path in (folder / split).iterdir()
                             if path.suffix in (".tar", ".json", ".npy", ".jsonl")}
    assert pushed.private and files.keys() - {".gitattributes"} == names and len(names) > 8
    assert all(files[name] == (folder / name).read_bytes() for name in names)


def test_a_branch_leaves_the_main_one_alone(server, folder):
    license_it(folder)
    assert main(["push-shards", str(folder), "me/tiles", "--revision", "trial"]) == 0
    pushed = server.repositories["me/tiles"]
    assert "README.md" in pushed.commits[pushed.branches["trial"]]
    assert "README.md" not in pushed.commits[pushed.branches["main"]]


def test_nothing_is_uploaded_without_a_licence(server, folder, capsys):
    for text in ("license: unknown", "license: ''", "license:", "other: 1"):
        card = folder / "README.md"
        card.write_text(card.read_text().replace("license: unknown", text))
        assert main(["push-shards", str(folder), "me/tiles"]) == 1
        assert says(capsys.readouterr().err, "license", card)
        card.write_text(card.read_text().replace(text, "license: unknown"))
    assert not server.seen


@pytest.mark.parametrize("damage,told", [
    (lambda folder: next((folder / "train").glob("*.tar")).unlink(), "verify-shards"),
    (lambda folder: (folder / "train/manifest.json").unlink(), "train/manifest.json"),
    (lambda folder: next((folder / "train").glob("*.tar")).write_bytes(b"cut"), "verify-shards"),
    (lambda folder: (folder / "README.md").unlink(), "README.md"),
    (lambda folder: (folder / "README.md").write_text("# Mine"), "header"),
    (lambda folder: (folder / "README.md").write_text("---\n[\n---\n"), "YAML"),
    (lambda folder: [path.unlink() for path in folder.glob("*/manifest.json")], "manifest.json"),
])
def test_what_is_not_whole_is_refused_before_the_hub_is_asked(server, folder, damage, told):
    license_it(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=facts(told)):
        upload.push_shards(folder, "me/tiles")
    assert not server.seen


def test_no_access_names_the_cure(server, folder, monkeypatch):
    license_it(folder)
    with pytest.raises(PermissionError, match=facts("they/tiles", "hf auth login")):
        upload.push_shards(folder, "they/tiles")
