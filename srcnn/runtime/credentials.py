"""Passwords, tokens and keys, blotted out of what is printed and kept."""

from __future__ import annotations

import re

# User and password before the host of a URL; and query parameters and settings whose name says that they are secret.
_USER = re.compile(r"(?<=\w\w:/)(/?)[^/\s]*@")  # one slash: a URL that was made a Path
_SECRET = re.compile(
    r"""(?<![\w%.-])
    ((?:[\w%.-]*(?:signature|credentials?|tokens?|secret|passw(?:or)?d|pwd|(?:access|api|secret|account|private)[_-]?key
        (?:[_-]?id)?)
      |sig|auth|(?<=[?&])key)
    =["']?)[^&\s'"\#]+""",
    re.IGNORECASE | re.VERBOSE,
)


def without_credentials(text: str) -> str:
    """The text with users and passwords of URLs, signatures, tokens and keys replaced by ***."""
    return _SECRET.sub(r"\1***", _USER.sub(r"\1***@", text))
