"""The files of a network on the Hugging Face hub: model.safetensors, config.json, and the card as README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import yaml

from srcnn.models.weight_files import MAX_WEIGHTS_BYTES, WEIGHTS, config_differs, read_weights
from srcnn.runtime.errors import UserError
from srcnn.runtime.settings import plain
from srcnn.runtime.untrusted import open_regular, parse_json, read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MAX_BYTES = {CONFIG: 1 << 20, MODEL: MAX_WEIGHTS_BYTES}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MODEL_TYPE = "srcnn"
TASK = "image-to-image"
METRICS = ("PSNR", "SSIM")
SHIPPED_LICENSE = "apache-2.0"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Result(NamedTuple):
    """The scores of a network on one set: "psnr" in dB, "ssim"."""

    dataset: str
    title: str
    scores: Mapping[str, Any]


def is_repository(source: str | Path, revision: str | None = None) -> bool:
    """Whether a source is a repository of the hub, rather than a path or the name of shipped weights.

    Raises:
        UserError: it is none, and a revision is given.
    """
    is_local = Path(source).exists() or (WEIGHTS / f"{source}.safetensors").is_file()
    if not is_local and _HUB_ID.fullmatch(str(source)):
        return True
    if revision is not None:
        raise UserError(f"{source}: a revision ({revision}) needs a repository of the hub, owner/name")
    return False


def check_has_weights(path: Path) -> None:
    """Raises FileNotFoundError where a path is a folder without weights."""
    if path.is_dir() and not (path / MODEL).is_file() and not (path / "best" / MODEL).is_file():
        raise FileNotFoundError(f"{path}: {without_weights([file.name for file in path.iterdir()])}")


def with_header(card: str, license: str | None = None, name: str = "", results: Sequence[Result] = ()) -> str:
    """The card with the YAML header of the hub: the licence, if one is given, and the scores as its model-index; a card
    that has a header stays as it is.

    Raises:
        UserError: such a card, and a licence.
    """
    if card.startswith("---\n"):
        if license is not None:
            raise UserError(f"the card has a header of its own: write the licence, {license}, there")
        return card
    header: dict[str, object] = {"license": license} if license else {}
    header |= {"library_name": "srcnn", "pipeline_tag": TASK, "tags": ["srcnn", "image-restoration"]}
    if metrics := [metric.lower() for metric in METRICS if metric in card]:
        header["metrics"] = metrics
    if results:
        header["model-index"] = [{"name": name, "results": [
            {"task": {"type": TASK}, "dataset": {"type": result.dataset, "name": result.title},
             "metrics": [{"type": metric.lower(), "name": metric, "value": round(result.scores[metric.lower()], 4)}
                         for metric in METRICS if result.scores.get(metric.lower()) is not None]}
            for result in results]}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{card}"


def shipped_name(state: Mapping[str, torch.Tensor]) -> str:
    """The name of the shipped weights that are exactly these (`Network.saved_state`); "" where none are."""
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        theirs = read_weights(path)[0]
        if theirs.keys() == state.keys() and all(torch.equal(theirs[name], state[name]) for name in state):
            return path.stem
    return ""


def shipped_card(name: str) -> str:
    """The card of shipped weights, without a header."""
    return (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")


def shipped_results(name: str) -> list[Result]:
    """The scores in the card of shipped weights."""
    scores = read_json(WEIGHTS / f"{name}.json")["scores"]
    return [Result(title.split(",")[0], title, row) for title, row in scores.items()]


def check_config(path: Path, config: DataclassInstance) -> None:
    """Raises ValueError where config.json is damaged or contradicts `config`; it may be missing."""
    if not path.exists():
        return
    try:
        with open_regular(path, MAX_BYTES[CONFIG]) as file:
            written = parse_json(file.read())
        if not isinstance(written, dict) or written.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise UserError("not the config of an SRCNN")
        if difference := config_differs(written, plain(asdict(config))):
            raise UserError(difference)
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from error


def without_weights(names: list[str]) -> str:
    """What to say of a folder or repository with files of these names, none of which is model.safetensors."""
    pickles = ", ".join(sorted(name for name in names if name.endswith(PICKLES)))
    note = f"; {pickles[:200]} may be a pickle, which can run code when loaded, and is not read" if pickles else ""
    return f"no {MODEL}{note}"
