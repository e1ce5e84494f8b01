"""Errors that end a program with one line on stderr; every other exception keeps its traceback."""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Iterable

# How PyTorch's CPU allocator, oneDNN, C++, CUDA's libraries and MPS say in a plain RuntimeError that memory ran out.
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|could not (create|execute) a (primitive|memory)|std::bad_alloc"
                            r"|_STATUS_ALLOC_FAILED|CUDA error: out of memory|MPS backend out of memory")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but for tab and newline


class UserError(ValueError):
    """Invalid settings, files or data; the message names the key or file, what was found, and what to do.

    Control characters in what a stranger's file holds, which a terminal obeys, are escaped.
    """

    def __str__(self) -> str:
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], super().__str__())


class DivergedError(UserError, FloatingPointError):
    """Loss or gradient was not finite, again and again."""


EXPECTED = (UserError, OSError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine is out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    torch = sys.modules.get("torch")  # not imported for this
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    return isinstance(error, kinds) or isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message that names the known word most like the given one; "" where none is as similar as `cutoff`,
    0..1 (`difflib.get_close_matches`).
    """
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""
