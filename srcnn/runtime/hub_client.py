"""Uploads to the Hugging Face hub: the licence that they need, and the errors of the hub's client in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from srcnn.runtime.errors import UserError

# The base classes are those of the HTTP library that the client uses. RuntimeError: an upload failed.
_UNREACHABLE = cast(tuple[type[Exception], ...], (OSError, RuntimeError, *HfHubHTTPError.__bases__))
_HEADER = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
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


def upload_folder(
    folder: Path, repo_id: str, message: str, *, private: bool, token: str | bool | None, revision: str | None,
    repo_type: str | None = None, patterns: list[str] | None = None,
) -> tuple[str, str]:
    """Uploads a folder (of it what fits one of `patterns`) in one commit; returns the URLs of repository and commit.

    A missing repository (private if `private`) or branch `revision` is created. Raises as `hub_errors`.
    """
    api = HfApi(token=token)
    with hub_errors(repo_id, revision):
        address = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)  # adds a missing owner
        if revision is not None:
            api.create_branch(address.repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        commit = api.upload_folder(repo_id=address.repo_id, repo_type=repo_type, folder_path=folder, revision=revision,
                                   allow_patterns=patterns, commit_message=message)
    return str(address), str(commit.commit_url)


def card_header(card: str) -> dict[str, Any]:
    """The YAML header of a card of the hub; {} where it has none. Raises UserError at a damaged one."""
    match = _HEADER.match(card)
    try:
        header = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise UserError(f"the header of the card is no YAML: {' '.join(str(error).split())[:200]}") from error
    return header if isinstance(header, dict) else {}


def check_licensed(card: str, cure: str) -> None:
    """Raises UserError, with the cure, where the card of what is to be uploaded has no licence in its header."""
    if card_header(card).get("license") in (None, "", "unknown"):
        raise UserError(f"under which licence? {cure} (names: https://huggingface.co/docs/hub/repositories-licenses)")
