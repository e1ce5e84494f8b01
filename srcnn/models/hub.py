"""Networks in folders and repositories of the Hugging Face hub: model.safetensors, config.json, README.md (the card).

Only model.safetensors and config.json are fetched, within bounds; nothing in them is executed, and no pickle is read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from srcnn.models.weight_files import MAX_WEIGHTS_BYTES, WEIGHTS, config_differs
from srcnn.runtime.settings import plain
from srcnn.runtime.untrusted import open_regular, parse_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MAX_BYTES = {CONFIG: 1 << 20, MODEL: MAX_WEIGHTS_BYTES}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MODEL_TYPE = "srcnn"
HEADER_KEYS = {"license": "apache-2.0", "library_name": "srcnn", "pipeline_tag": "image-to-image"}
TAGS = ("srcnn", "image-restoration")
METRICS = {"PSNR": "psnr", "SSIM": "ssim"}  # what a card speaks of, and the hub's name of it
HUB_SECONDS = 10.0  # until the hub counts as out of reach; its client by itself goes on trying for minutes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The bases: what the library below raises, httpx or httpx2. RuntimeError: an upload that failed.
_OUT_OF_REACH = cast(tuple[type[Exception], ...], (OSError, RuntimeError, *HfHubHTTPError.__bases__))
logger = logging.getLogger(__name__)


def find(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """What `find_weights` takes for a source of `Network.from_pretrained`, which says what the arguments are and what
    is raised; for a repository of the hub, the folder of the cache.
    """
    path = Path(source)
    is_local = path.exists() or (WEIGHTS / f"{source}.safetensors").is_file()
    if not is_local and _HUB_ID.fullmatch(str(source)):
        path = _fetch(str(source), revision, token, cache_dir, local_files_only)
    elif revision is not None:
        raise ValueError(f"{source}: a revision ({revision}) is for a repository of the hub, owner/name")
    if path.is_dir() and not (path / MODEL).is_file() and not (path / "best" / MODEL).is_file():
        raise FileNotFoundError(f"{path}: {_without_weights([file.name for file in path.iterdir()])}")
    return path


def upload(
    folder: Path, repo_id: str, private: bool, token: str | bool | None, commit_message: str, revision: str | None
) -> str:
    """Uploads weights, config and card of a folder in one commit, and returns its address; see `push_to_hub`."""
    api = HfApi(token=token)
    with _hub_errors(repo_id, revision):
        found = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # with the owner, if left out
        if revision is not None:
            api.create_branch(found, branch=revision, exist_ok=True)
        files = [CommitOperationAdd(name, folder / name) for name in (MODEL, CONFIG, CARD)]
        commit = api.create_commit(found, files, commit_message=commit_message, revision=revision)
        return str(commit.commit_url)


def with_header(card: str) -> str:
    """The card with the YAML header that the hub reads; one that has such a header stays as it is."""
    if card.startswith("---\n"):
        return card
    lists = {"tags": TAGS, "metrics": [name for word, name in METRICS.items() if word in card]}
    lines = [f"{key}: {value}" for key, value in HEADER_KEYS.items()]
    for key, values in lists.items():
        lines += [f"{key}:", *(f"- {value}" for value in values)] if values else []
    return "\n".join(["---", *lines, "---", "", card])


def check_config(path: Path, config: DataclassInstance) -> None:
    """Raises ValueError where config.json is damaged, of another kind, or of another network than this config; a file
    that is missing is none of these.
    """
    if not path.exists():
        return
    try:
        with open_regular(path, MAX_BYTES[CONFIG]) as file:
            written = parse_json(file.read())
        if not isinstance(written, dict) or written.get("model_type", MODEL_TYPE) != MODEL_TYPE:
            raise ValueError("not the config of an SRCNN")
        if differs := config_differs(written, plain(asdict(config))):
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
    """What the hub's client raises, as Python's own errors that say what to do."""
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
        detail = " ".join(str(reason).split())[:200] or type(reason).__name__
        raise ConnectionError(f"{hub} is out of reach or out of order ({detail})") from error
