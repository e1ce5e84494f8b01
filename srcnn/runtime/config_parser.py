"""The command line of config dataclasses: errors in one line, with the key that was meant."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import jsonargparse

from srcnn.runtime.config_help import Setting
from srcnn.runtime.credentials import without_credentials
from srcnn.runtime.errors import did_you_mean
from srcnn.runtime.strict_yaml import load_yaml
from srcnn.runtime.untrusted import InvalidInput

jsonargparse.set_loader("strict_yaml", load_yaml, (InvalidInput,))
_WHOLE = re.compile(r"Expected a <class 'int'>. Got value: (\d+\.0|\d[\d.]*e\+\d+)$")  # 1e6

_WRONG_VALUE = re.compile(r'(?:Parser key|Key) "([\w.]+)": .*(?:Got|Given) value: (.*)$')


class ConfigParser(jsonargparse.ArgumentParser):
    """A jsonargparse parser that reports an error in one line and suggests the key with the most similar name.

    `options` are names that may be meant, too: those of options that the program takes besides `settings`.
    """

    def __init__(self, settings: Iterable[Setting] = (), options: Sequence[str] = (), **kwargs: Any) -> None:
        self._settings, self._options = {setting.key: setting for setting in settings}, options
        super().__init__(**kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message, without passwords, and the known keys most like the unknown ones; exits with status 2."""
        known_keys = [*self.get_defaults().keys(branches=True), *self._options]
        unknown = re.findall(r"(?:arguments: |[Oo]ption '|Key ')(?:--)?([\w.-]+)", message)
        hints = [f'; did you mean "{near}"?' for key in unknown for near in nearest(key, known_keys)]
        if number := _WHOLE.search(message):
            hints.append(f"; write {float(number[1]):.0f}")
        elif "Expected a <class 'str'>" in message:
            hints.append("; in YAML, put a text that looks like a number or true or false in quotes")
        if "File does not exist" in message:
            hints.append("; `srcnn configs` lists the shipped ones")
        message = self._in_words(" ".join(message.split()))
        print(without_credentials(f"{self.prog}: {message}{''.join(hints)}"), file=sys.stderr)
        print(f"{self.prog} --help explains the settings", file=sys.stderr)
        raise SystemExit(2)

    def _in_words(self, message: str) -> str:
        """The message, without Python's types where it is about the value of a setting."""
        if (wrong := _WRONG_VALUE.search(message)) and wrong[1] in self._settings:
            setting = self._settings[wrong[1]]
            return (f"{message[:wrong.start()]}{setting.key}: expected {setting.expected}, got {wrong[2]}"
                    f"{did_you_mean(wrong[2], setting.kinds)}")
        return message


def nearest(key: str, known: list[str]) -> list[str]:
    """The known key most like `key`, whole or after its last dot, or nothing."""
    by_name = {name.rpartition(".")[2]: name for name in known} | {name: name for name in known}
    return [by_name[name] for name in difflib.get_close_matches(key, by_name, n=1, cutoff=0.5)]
