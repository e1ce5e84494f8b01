"""Dataclass -> command line and YAML: defaults < `--config` file < `--key value`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

ConfigT = TypeVar("ConfigT")


class ConfigParser(jsonargparse.ArgumentParser):
    """jsonargparse, whose errors take one line and also name the nearest right key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message with the keys that resemble the wrong one, and exits with status 2."""
        known = [action.dest for action in self._actions if action.dest not in ("help", "print_config")]
        unknown = re.findall(r"(?:arguments: |[Oo]ption '|Key ')(?:--)?([\w.]+)", message)
        hints = [f'; did you mean "{near}"?' for key in unknown for near in nearest(key, known)]
        print(f"{self.prog}: {' '.join(message.split())}{''.join(hints)}", file=sys.stderr)
        print(f"{self.prog} --help explains every key", file=sys.stderr)
        raise SystemExit(2)


def nearest(key: str, known: list[str]) -> list[str]:
    """The known key most like `key`, whole or after its last dot, or nothing."""
    by_name = {name.rpartition(".")[2]: name for name in known} | {name: name for name in known}
    return [by_name[name] for name in difflib.get_close_matches(key, by_name, n=1, cutoff=0.5)]


def parse(
    config_class: type[ConfigT], program: str, description: str, arguments: list[str] | None = None
) -> ConfigT:
    """Reads the command line (`arguments`, default sys.argv) into a frozen config dataclass.

    An unknown key, a value of the wrong type or a value the dataclass refuses (ValueError in `__post_init__`)
    ends the program with status 2 and one line that names it.
    """
    parser = ConfigParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(config_class, None)
    parsed = parser.parse_args(arguments)
    try:
        values = vars(parser.instantiate(parsed))
        names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
        return config_class(**{name: values[name] for name in names})
    except ValueError as error:
        parser.error(str(error))


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `--config` reads back."""
    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """Tuples to lists, all the way down: what YAML and JSON hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
