"""The one rule for errors: a user's mistake ends a program with one line, everything else with its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Settings, files or data that are not what they have to be; the message says which, and what to do."""


EXPECTED = (UserError, OSError, FloatingPointError)  # FloatingPointError: a training that has diverged
