"""The optional parts of the package, which pip adds: extras_require in setup.cfg."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from srcnn.runtime.errors import UserError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """What is done within needs an extra; decorates functions, too.

    Raises:
        UserError: a package cannot be found, and the message says how to install the extra; or a module of Python's own
            cannot, as those of Unix on Windows.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "srcnn"):
            raise
        if package in sys.stdlib_module_names:
            raise UserError(f"needs Python's module {package}, which is not on this system ({sys.platform})") from error
        raise UserError(f"needs the package {package}: pip install 'srcnn[{name}]'") from error
