"""Downloads networks from the Hugging Face hub.

Only model.safetensors and config.json are downloaded, up to a maximum size; no pickle is read, and nothing executed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from srcnn.models.hub_files import MAX_BYTES, MODEL, without_weights
from srcnn.runtime.errors import UserError
from srcnn.runtime.hub_client import hub_errors

HUB_SECONDS = 10.0  # timeout of the first request; the client alone would retry for minutes
logger = logging.getLogger(__name__)


def download(
    repo_id: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None, local_files_only: bool
) -> Path:
    """Downloads weights and config, for `Network.from_pretrained`, which lists the errors; returns their folder in
    the cache, which serves alone if the hub is down."""
    unreachable: ConnectionError | None = None
    names = list(MAX_BYTES)
    if not local_files_only:
        try:
            with hub_errors(repo_id, revision):
                names = _available_files(repo_id, revision, token)
        except ConnectionError as error:
            unreachable, local_files_only = error, True
    try:
        with hub_errors(repo_id, revision):
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
        raise FileNotFoundError(f"{repo_id} on {constants.ENDPOINT}: {without_weights(list(sizes))}")
    for name, limit in MAX_BYTES.items():
        if (size := sizes.get(name, 0)) is None or size > limit:
            raise UserError(f"{repo_id}: {name} has {size} bytes, more than the limit of {limit}")
    return [name for name in MAX_BYTES if name in sizes]
