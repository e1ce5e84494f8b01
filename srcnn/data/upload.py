"""Shards as a dataset on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from srcnn.data.index import INDEX
from srcnn.data.manifest import MANIFEST, read_manifest
from srcnn.data.photo_list import PHOTOS
from srcnn.runtime.errors import UserError
from srcnn.runtime.hub_client import card_header, check_licensed, upload_folder
from srcnn.runtime.storage import Folder

CARD = "README.md"
MAX_CARD_BYTES = 1 << 20


def push_shards(
    folder: Path, repo_id: str, *, private: bool = False, token: str | bool | None = None, revision: str | None = None
) -> str:
    """Uploads a folder of shards with its dataset card to the dataset "owner/name"; returns the dataset's URL.

    A missing dataset (private if `private`) or branch `revision` is created. Called again after an interruption it goes
    on where it was, with hf_xet, which huggingface_hub brings. Only shards, manifests, indices, lists of photos and the
    card are uploaded.

    Raises:
        FileNotFoundError: no such folder, or no shards or no card in it.
        ValueError: the card has no licence, or a shard is missing or has another size than its manifest says.
        PermissionError: no write access.
        ConnectionError: the hub cannot be reached, or fails.
    """
    files = shard_files(folder)
    card = read_card(folder)
    check_licensed(card, f"write it into `license` at the top of {folder / CARD}, with where the photographs are from")
    return upload_folder(folder, repo_id, "Upload shards", private=private, token=token, revision=revision,
                         repo_type="dataset", patterns=[CARD, *files])[0]


def read_card(folder: Path) -> str:
    """The card of a folder of shards. Raises FileNotFoundError without one, ValueError at one without a header."""
    path = folder / CARD
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no dataset card; `srcnn shards` writes it, also for shards that are there")
    card = path.read_bytes()[:MAX_CARD_BYTES].decode(errors="replace")
    if not card_header(card):
        raise UserError(f"{path}: has no header (---, YAML, ---) by which the hub reads the shards and the licence")
    return card


def shard_files(folder: Path) -> list[str]:
    """The files of all splits in a folder, as paths relative to it; every shard is there in its full size."""
    splits = sorted({path.parent for name in (MANIFEST, "*.tar") for path in folder.glob(f"*/{name}")})
    if not splits:
        raise FileNotFoundError(f"{folder}: no folder with a {MANIFEST} in it, such as train/, is here")
    files = []
    for split in splits:
        for shard in read_manifest(Folder(split)).shards:
            path = split / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise UserError(f"{path}: missing, or not of the {shard.bytes} bytes that its manifest says; make it "
                                f"again, and check it with `srcnn verify-shards {split}`")
            files.append(f"{split.name}/{shard.name}")
        beside = (MANIFEST, INDEX, PHOTOS)
        files += [f"{split.name}/{name}" for name in beside if (split / name).is_file()]
    return files
