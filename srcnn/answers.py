"""What an object store answers: no more of it than was asked for, and what went wrong, told without secrets."""

from __future__ import annotations

import re
from typing import Any

from srcnn.config import without_credentials

CHUNK_BYTES = 1 << 20  # of an answer, more or less, before it is looked at whether there is too much of it


class Final(OSError):
    """What another attempt will not mend."""


def collected(result: Any, max_bytes: int) -> Any:
    """What came, as a buffer; a server that sends more than was asked for is not listened to."""
    chunks, num_bytes = [], 0
    for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise Final(f"more than {max_bytes} bytes came")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def cause(error: BaseException) -> str:
    """What went wrong: the first line, and the kinds of error that obstore only names in its dump below."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    kinds = dict.fromkeys(re.findall(r"kind: (\w+)", " ".join(lines[1:])))
    line = re.sub(r"(status code: \d+[ \w]*).*", r"\1", lines[0])  # an answer's body may hold keys and signatures
    return without_secrets(line) + (f" ({', '.join(kinds)})" if kinds else "")


def without_secrets(text: str) -> str:
    """A URL, or a text with URLs, without user, password and query."""
    return without_credentials(re.sub(r"\?[^\s\"')]*", "", text)).replace("://***@", "://")
