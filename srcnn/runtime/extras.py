"""The optional parts of the package, which pip adds: extras_require in setup.cfg."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from srcnn.runtime.errors import UserError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """What is done within needs an extra; decorates functions, too.

    Raises:
        UserError: a package cannot be found; the message says how to install the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "srcnn"):
            raise
        raise UserError(f"needs the package {package}: pip install 'srcnn[{name}]'") from error
