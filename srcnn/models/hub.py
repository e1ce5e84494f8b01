"""Networks on the Hugging Face hub: model.safetensors, config.json, and the card as README.md.

Only model.safetensors and config.json are downloaded, up to a maximum size; no pickle is read, and nothing executed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from srcnn.models.weight_files import MAX_WEIGHTS_BYTES, WEIGHTS, config_differs
from srcnn.runtime.errors import UserError
from srcnn.runtime.settings import plain
from srcnn.runtime.untrusted import open_regular, parse_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
MAX_BYTES = {CONFIG: 1 << 20, MODEL: MAX_WEIGHTS_BYTES}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
MODEL_TYPE = "srcnn"
METRICS = ("PSNR", "SSIM")
HUB_SECONDS = 10.0  # timeout of the first request; the client alone would retry for minutes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The base classes are those of the HTTP library that the client uses. RuntimeError: an upload failed.
_UNREACHABLE = cast(tuple[type[Exception], ...], (OSError, RuntimeError, *HfHubHTTPError.__bases__))
logger = logging.getLogger(__name__)


def find(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The path to pass to `find_weights` for a source; of a repository, its folder in the cache after downloading.
    For arguments and errors see `Network.from_pretrained`.
    """
    path = Path(source)
    is_local = path.exists() or (WEIGHTS / f"{source}.safetensors").is_file()
    if not is_local and _HUB_ID.fullmatch(str(source)):
        path = _download(str(source), revision, token, cache_dir, local_files_only)
    elif revision is not None:
        raise UserError(f"{source}: a revision ({revision}) needs a repository of the hub, owner/name")
    if path.is_dir() and not (path / MODEL).is_file() and not (path / "best" / MODEL).is_file():
        raise FileNotFoundError(f"{path}: {_without_weights([file.name for file in path.iterdir()])}")
    return path


def upload(
    folder: Path, repo_id: str, private: bool, token: str | bool | None, commit_message: str, revision: str | None
) -> str:
    """Uploads weights, config and card of a folder in one commit and returns its URL; see `Network.push_to_hub`."""
    api = HfApi(token=token)
    with _hub_errors(repo_id, revision):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id  # adds a missing owner
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        files = [CommitOperationAdd(name, folder / name) for name in (MODEL, CONFIG, CARD)]
        commit = api.create_commit(repo_id, files, commit_message=commit_message, revision=revision)
        return str(commit.commit_url)


def with_header(card: str) -> str:
    """The card with the YAML header of the hub; a card that has one stays as it is."""
    if card.startswith("---\n"):
        return card
    metrics = [metric.lower() for metric in METRICS if metric in card]
    header = ModelCardData(license="apache-2.0", library_name="srcnn", pipeline_tag="image-to-image",
                           tags=["srcnn", "image-restoration"], metrics=metrics or None)
    return f"---\n{header.to_yaml()}\n---\n\n{card}"


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


def _download(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, local_files_only: bool
) -> Path:
    """Downloads weights and config; returns their folder in the cache, which serves alone if the hub is down."""
    unreachable: ConnectionError | None = None
    names = list(MAX_BYTES)
    if not local_files_only:
        try:
            with _hub_errors(repo_id, revision):
                names = _available_files(repo_id, revision, token)
        except ConnectionError as error:
            unreachable, local_files_only = error, True
    try:
        with _hub_errors(repo_id, revision):
            for name in names:
                try:  # the weights last: their folder is returned
                    path = hf_hub_download(repo_id, name, revision=revision, token=token, cache_dir=cache_dir,
                                           local_files_only=local_files_only)
                except LocalEntryNotFoundError:
                    if name == MODEL:
                        raise
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{repo_id}: no such path, and no copy in the cache ({cache_dir or constants.HF_HUB_CACHE}); "
            f"{unreachable or ('local_files_only is set' if local_files_only else error)}. Download it once with a "
            "connection to the hub, or pass a folder"
        ) from error
    if unreachable is not None:
        logger.warning("%s; using the copy in the cache", unreachable)
    return Path(path).parent


def _available_files(repo_id: str, revision: str | None, token: str | bool | None) -> list[str]:
    """The files to download. Raises FileNotFoundError without weights, ValueError where a file is too large."""
    info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=HUB_SECONDS, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    if MODEL not in sizes:
        raise FileNotFoundError(f"{repo_id} on {constants.ENDPOINT}: {_without_weights(list(sizes))}")
    for name, limit in MAX_BYTES.items():
        if (size := sizes.get(name, 0)) is None or size > limit:
            raise UserError(f"{repo_id}: {name} has {size} bytes, more than the limit of {limit}")
    return [name for name in MAX_BYTES if name in sizes]


def _without_weights(names: list[str]) -> str:
    pickles = ", ".join(sorted(name for name in names if name.endswith(PICKLES)))
    note = f"; {pickles[:200]} may be a pickle, which can run code when loaded, and is not read" if pickles else ""
    return f"no {MODEL}{note}"


@contextmanager
def _hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns errors of the hub's client into Python's own errors that say what to do."""
    hub = constants.ENDPOINT
    try:
        yield
    except (FileNotFoundError, LocalEntryNotFoundError, PermissionError):
        raise
    except GatedRepoError as error:
        raise PermissionError(f"{repo_id}: a gated repository: accept its terms at {hub}/{repo_id}, then log in "
                              "(`hf auth login`, or token=)") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id}: no revision {revision} on {hub}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{repo_id}: no such path, and no such repository on {hub}, or a private one: for that "
                                "log in (`hf auth login`, or token=)") from error
    except _UNREACHABLE as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # an error of this machine, such as a full disk
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if getattr(getattr(reason, "response", None), "status_code", 0) in (401, 403):
            raise PermissionError(f"{repo_id}: {hub} denies access: log in with a token that has it "
                                  "(`hf auth login`, or token=)") from error
        detail = " ".join(str(reason).split())[:200] or type(reason).__name__
        raise ConnectionError(f"cannot reach {hub}, or it failed ({detail})") from error
