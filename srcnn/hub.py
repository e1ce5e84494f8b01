"""A network in a folder or a repository of the Hugging Face hub: model.safetensors, config.json, README.md (its card).

Only model.safetensors and config.json are fetched, within bounds; nothing in them is executed, and no pickle is read.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import cast

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from srcnn.base import Network
from srcnn.config import plain
from srcnn.files import atomic_file, write_json
from srcnn.hub_card import make_card, with_header
from srcnn.model import WEIGHTS, load_model, save_model
from srcnn.untrusted import open_regular, parse_json
from srcnn.weight_files import MAX_WEIGHTS_BYTES, config_differs

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MAX_BYTES = {CONFIG: 1 << 20, MODEL: MAX_WEIGHTS_BYTES}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MODEL_TYPE = "srcnn"
HUB_SECONDS = 10.0  # until the hub counts as out of reach; its client by itself goes on trying for minutes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The bases: what the library below raises, httpx or httpx2. RuntimeError: an upload that failed.
_OUT_OF_REACH = cast(tuple[type[Exception], ...], (OSError, RuntimeError, *HfHubHTTPError.__bases__))
logger = logging.getLogger(__name__)


def from_pretrained(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Network:
    """A network ready to restore with (eval mode, CPU), from a folder of `save_pretrained`, whatever `load_model`
    takes, or a repository of the hub, "owner/name". What is on the disk goes before the hub.

    Args:
        revision: branch, tag or commit of the repository.
        token: of the hub; by default the one that is logged in with.
        cache_dir: where what is fetched is kept; by default the folder of the hub's client.
        local_files_only: take it from there, and do not ask the hub.

    Raises:
        FileNotFoundError: no such path or shipped name, and no such repository, revision or weights on the hub.
        ConnectionError: the hub is out of reach, and there is no copy in the cache.
        PermissionError: the repository is not for everybody.
        ValueError: not weights of such a network, or of another than config.json says.
    """
    path = Path(source)
    is_local = path.exists() or (WEIGHTS / f"{source}.safetensors").is_file()
    if not is_local and _HUB_ID.fullmatch(str(source)):
        path = _fetch(str(source), revision, token, cache_dir, local_files_only)
    elif revision is not None:
        raise ValueError(f"{source}: a revision ({revision}) is for a repository of the hub, owner/name")
    if not path.is_dir():
        return load_model(source)
    try:
        model = load_model(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {_without_weights([file.name for file in path.iterdir()])}") from error
    if (path / CONFIG).exists():
        _check_config(path / CONFIG, model)
    return model


def save_pretrained(
    model: Network, folder: str | Path, card: str | Path | None = None, run: str | Path | None = None
) -> None:
    """Writes model.safetensors, config.json and README.md, the model card, into a folder.

    Args:
        card: Markdown of the card, or a file of it as a Path; a YAML header is added where it has none.
        run: the run folder whose best checkpoint this is, to make the card from. With neither, the card says what the
            network is, and that no more is known.

    Raises:
        FileNotFoundError: no such card, or no training in the run folder.
        ValueError: the weights are not those of the run's best checkpoint, or both a card and a run are given.
    """
    folder = Path(folder)
    text = with_header(_card_text(model, card, run))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / MODEL)
    write_json(folder / CONFIG, {"model_type": MODEL_TYPE, **asdict(model.config)})
    with atomic_file(folder / CARD) as file:
        file.write(text.encode())


def _card_text(model: Network, card: str | Path | None, run: str | Path | None) -> str:
    if card is not None and run is not None:
        raise ValueError("a card is given or made from a run; not both")
    if isinstance(card, str) and card.endswith(".md"):
        raise ValueError(f"the card is the text {card!r:.99}; for a file give Path({card!r:.99})")
    if card is None:
        return make_card(model, None if run is None else Path(run))
    return card.read_text(encoding="utf-8") if isinstance(card, Path) else card


def push_to_hub(
    model: Network,
    repo_id: str,
    private: bool = False,
    token: str | bool | None = None,
    commit_message: str = "Upload SRCNN",
    revision: str | None = None,
    card: str | Path | None = None,
    run: str | Path | None = None,
) -> str:
    """Uploads what `save_pretrained` writes to "owner/name" of the hub, in one commit; returns the commit's address.

    A repository or branch (`revision`) that is missing is made, the repository private where `private` is set.

    Raises:
        PermissionError: no right to write there.
        ConnectionError: the hub is out of reach, or out of order.
        Else as `save_pretrained`.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, card=card, run=run)
        with _hub_errors(repo_id, revision):
            found = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # with the owner, if left out
            if revision is not None:
                api.create_branch(found, branch=revision, exist_ok=True)
            files = [CommitOperationAdd(name, Path(folder, name)) for name in (MODEL, CONFIG, CARD)]
            commit = api.create_commit(found, files, commit_message=commit_message, revision=revision)
            return str(commit.commit_url)


def _check_config(path: Path, model: Network) -> None:
    """Raises ValueError where config.json is damaged, of another kind, or of another network than its weights."""
    try:
        with open_regular(path, MAX_BYTES[CONFIG]) as file:
            told = parse_json(file.read())
        if not isinstance(told, dict) or told.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise ValueError("not the config of an SRCNN")
        if differs := config_differs(told, plain(asdict(model.config))):
            raise ValueError(differs)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def _fetch(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, local_files_only: bool
) -> Path:
    """The folder of the cache that holds a repository's weights and config, brought up to date where that can be."""
    problem: BaseException | None = None
    names = list(MAX_BYTES)  # the weights last: theirs is the folder
    if not local_files_only:
        try:
            with _hub_errors(repo_id, revision):
                names = _names(repo_id, revision, token)
        except ConnectionError as error:
            problem, local_files_only = error, True
    try:
        with _hub_errors(repo_id, revision):
            for name in names:
                try:
                    found = hf_hub_download(repo_id, name, revision=revision, token=token, cache_dir=cache_dir,
                                            local_files_only=local_files_only)
                except LocalEntryNotFoundError:
                    if name == MODEL:
                        raise
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{repo_id}: nothing of that name here, and no copy in the cache ({cache_dir or constants.HF_HUB_CACHE}); "
            f"{problem or (error if not local_files_only else 'the hub was not to be asked')}. Fetch it once where "
            "there is a network, or give a folder"
        ) from error
    if problem is not None:
        logger.warning("%s; the copy in the cache is used", problem)
    return Path(found).parent


def _names(repo_id: str, revision: str | None, token: str | bool | None) -> list[str]:
    """Which of our files a repository has. Raises FileNotFoundError without weights, ValueError at too large ones."""
    info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=HUB_SECONDS, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    if MODEL not in sizes:
        raise FileNotFoundError(f"{repo_id}: on {constants.ENDPOINT}, {_without_weights(list(sizes))}")
    for name, limit in MAX_BYTES.items():
        if (size := sizes.get(name, 0)) is None or size > limit:
            raise ValueError(f"{repo_id}: {name} has {size} bytes, more than {limit}")
    return [name for name in MAX_BYTES if name in sizes]


def _without_weights(names: list[str]) -> str:
    pickles = ", ".join(sorted(name for name in names if name.endswith(PICKLES)))
    also = f"; {pickles[:200]} may be a pickle, which runs code when it is loaded: not read" if pickles else ""
    return f"no {MODEL}{also}"


@contextmanager
def _hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """What the hub's client raises, as Python's own errors that name the cure."""
    hub = constants.ENDPOINT
    try:
        yield
    except (FileNotFoundError, LocalEntryNotFoundError, PermissionError):
        raise
    except GatedRepoError as error:
        raise PermissionError(f"{repo_id}: asks for consent first: give it at {hub}/{repo_id}, then log in "
                              "(`hf auth login`, or token=)") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id}: no revision {revision} on {hub}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{repo_id}: nothing of that name here, and no such repository on {hub}, or a private "
                                "one: then log in (`hf auth login`, or token=)") from error
    except _OUT_OF_REACH as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of this machine: a full disk
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if getattr(getattr(reason, "response", None), "status_code", 0) in (401, 403):
            raise PermissionError(f"{repo_id}: {hub} refuses: log in with a token that has the right "
                                  "(`hf auth login`, or token=)") from error
        told = " ".join(str(reason).split())[:200] or type(reason).__name__
        raise ConnectionError(f"{hub} is out of reach or out of order ({told})") from error
