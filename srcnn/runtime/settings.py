"""Config dataclasses from the command line and YAML: defaults < `--config` file < `--key value`."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from srcnn.runtime.errors import UserError
from srcnn.runtime.untrusted import check_yaml

ConfigT = TypeVar("ConfigT")
# User and password before the host of a URL; and query parameters and settings whose name says that they are secret.
_USER = re.compile(r"(?<=://)[^/\s]*@")
_SECRET = re.compile(
    r"""(?<![\w%.-])
    ((?:[\w%.-]*(?:signature|credentials?|tokens?|secret|passw(?:or)?d|pwd|(?:access|api|secret|account|private)[_-]?key
        (?:[_-]?id)?)
      |sig|auth|(?<=[?&])key)
    =["']?)[^&\s'"\#]+""",
    re.IGNORECASE | re.VERBOSE,
)


class ConfigParser(jsonargparse.ArgumentParser):
    """A jsonargparse parser that reports an error in one line and suggests the key with the most similar name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and the known keys most like the unknown ones, and exits with status 2."""
        known_keys = [action.dest for action in self._actions if action.dest not in ("help", "print_config")]
        unknown = re.findall(r"(?:arguments: |[Oo]ption '|Key ')(?:--)?([\w.]+)", message)
        hints = [f'; did you mean "{near}"?' for key in unknown for near in nearest(key, known_keys)]
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
    """Parses the command line (`arguments`, default sys.argv) into a frozen config dataclass.

    An unknown key, a value of the wrong type, or one that the dataclass rejects (ValueError in `__post_init__`) ends
    the program with status 2 and one line that names it.
    """
    parser = ConfigParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(config_class, None)
    fields = dataclasses.fields(config_class)  # type: ignore[arg-type]  # no type says "any dataclass"
    booleans = {f"--{field.name}" for field in fields if field.type in ("bool", bool)}
    arguments = _with_values(sys.argv[1:] if arguments is None else arguments, booleans)
    try:
        for file in _config_files(arguments):
            check_yaml(file)
        values = vars(parser.instantiate(parser.parse_args(arguments)))
        if empty := [field.name for field in fields if values[field.name] is None and "None" not in str(field.type)]:
            parser.error(f"{empty[0]} has no value")
        return config_class(**{field.name: values[field.name] for field in fields})
    except (ValueError, RecursionError) as error:
        parser.error(str(error))
    except TypeError as error:
        parser.error(f"a key has no value, or a value of the wrong type: {error}")


def _config_files(arguments: list[str]) -> Iterator[Path]:
    """The existing files among the values of `--config`."""
    for argument, following in zip(arguments, [*arguments, ""][1:]):
        key, _, value = argument.partition("=")
        if key == "--config" and (file := Path(value or following)).exists():
            yield file


def _with_values(arguments: list[str], booleans: set[str]) -> list[str]:
    """Adds the value "true" after each `--key` of a boolean that has none; `--run_dir` is `--run`."""
    arguments = [re.sub(r"^--run_dir(?==|$)", "--run", argument) for argument in arguments]  # torchrun takes --run
    result: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"]):
        result += [argument, "true"] if argument in booleans and following.startswith("--") else [argument]
    return result


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `--config` reads back."""
    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a config file. Raises ValueError if it is not a mapping, or not as `check_yaml` demands."""
    check_yaml(path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    return content


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"model": {"residual": True}} -> {"model.residual": True}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def plain(value: Any) -> Any:
    """A nested value with its tuples as lists, as YAML and JSON read it back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def without_credentials(text: str) -> str:
    """The text with users and passwords of URLs, signatures, tokens and keys replaced by ***."""
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))
