"""Errors that end a program with one line on stderr; every other exception keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Invalid settings, files or data; the message names the key or file, what was found, and what to do."""


EXPECTED = (UserError, OSError, FloatingPointError)  # FloatingPointError: the training diverged
