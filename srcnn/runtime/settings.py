"""Config dataclasses from the command line and YAML: defaults < `--config` file < `--key value`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml

from srcnn.runtime.config_files import find_config
from srcnn.runtime.errors import UserError
from srcnn.runtime.extras import extra
from srcnn.runtime.plugins import load_plugins
from srcnn.runtime.strict_yaml import read_yaml

ConfigT = TypeVar("ConfigT")


def parse(
    config_class: type[ConfigT], program: str, docstring: str, arguments: list[str] | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> ConfigT:
    """Parses the command line (`arguments`, default sys.argv) into a frozen config dataclass.

    An unknown key, a value of the wrong type, or one that the dataclass rejects (ValueError in `__post_init__`) ends
    the program with status 2 and one line that names it; `--help` and `--help-all` end it with a help page, for which
    are `docstring` and `options`, those that the program has taken out of `arguments`: see config_help.
    """
    with extra("train"):  # packages that restoring does not need
        from srcnn.runtime.config_help import help_page, settings_of
        from srcnn.runtime.config_parser import ConfigParser

    arguments = sys.argv[1:] if arguments is None else arguments
    if asked := {"-h", "--help", "--help-all"} & set(arguments):
        print(help_page(config_class, program, docstring, options, "--help-all" in asked), end="")
        raise SystemExit(0)
    names = ["help", "help-all", *(option.split()[0].lstrip("-") for option in options)]
    parser = ConfigParser(settings_of(config_class), names, prog=program, add_help=False,
                          allow_abbrev=False, parser_mode="strict_yaml")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config_class, None)
    fields = dataclasses.fields(config_class)  # type: ignore[arg-type]  # no type says "any dataclass"
    booleans = {f"--{field.name}" for field in fields if field.type in ("bool", bool)}
    if "plugins" in {field.name for field in fields}:
        arguments, plugins = _without_plugins(program, arguments)
        try:
            load_plugins(plugins)
        except UserError as error:
            parser.error(str(error))
    arguments, files = _with_config_paths(_with_values(arguments, booleans))
    try:
        for path in files:
            if (file := Path(os.path.expanduser(path))).exists():
                _check_groups(config_class, read_yaml(file), f"{file}: ")
        values = vars(parser.instantiate(parser.parse_args(arguments)))
        if empty := [field.name for field in fields if values[field.name] is None and "None" not in str(field.type)]:
            parser.error(f"{empty[0]} has no value")
        config = config_class(**{field.name: with_home(values[field.name]) for field in fields})
        for key, value in flat(dataclasses.asdict(config)).items():  # type: ignore[call-overload]
            if isinstance(value, float) and not math.isfinite(value):
                parser.error(f"{key}: expected a finite number, got {value}")
        return config
    except (ValueError, RecursionError) as error:
        parser.error(str(error))
    except TypeError as error:
        parser.error(f"a key has no value, or a value of the wrong type: {error}")


def _without_plugins(program: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without each `--plugins FILE`, and the files. They are loaded before the settings that need them
    are read, and by the command line alone: a config, which may be a stranger's, makes nothing run.
    """
    parser = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False)
    parser.add_argument("--plugins", action="append", default=[])
    found, others = parser.parse_known_args(arguments)
    return others, found.plugins


def _with_config_paths(arguments: list[str]) -> tuple[list[str], list[Path]]:
    """The arguments with the paths of shipped configs in place of their names, where no file has such a name; and the
    paths of all configs.
    """
    result, files = [], []
    for before, argument in zip(["", *arguments], arguments):
        option = "--config=" if argument.startswith("--config=") else ""
        if option or before == "--config":
            files.append(find_config(argument.removeprefix(option)))
            argument = f"{option}{files[-1]}"
        result.append(argument)
    return result, files


def _check_groups(kind: Any, values: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a config file has anything but keys and values for a dataclass in `kind`.

    jsonargparse would take the name of another file there, of any size and kind.
    """
    groups = {field.name: field.default_factory for field in dataclasses.fields(kind)
              if dataclasses.is_dataclass(field.default_factory)}
    for key, value in values.items():
        name, dot, rest = str(key).partition(".")
        if name == "config" or name in groups and not dot and not isinstance(value, Mapping):
            raise UserError(f"{where}{key}: expected keys and values: a config file names no other file")
        if name in groups:
            _check_groups(groups[name], {rest: value} if dot else value, f"{where}{name}.")


def _with_values(arguments: list[str], booleans: set[str]) -> list[str]:
    """Adds the value "true" after each `--key` of a boolean that has none; `--run_dir` is `--run`."""
    arguments = [re.sub(r"^--run_dir(?==|$)", "--run", argument) for argument in arguments]  # torchrun takes --run
    result: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"]):
        result += [argument, "true"] if argument in booleans and following.startswith("--") else [argument]
    return result


def with_home(value: Any) -> Any:
    """The value with `~` at the beginning of its texts, in whatever it holds, replaced by the home folder.

    Raises:
        UserError: that of a user who is not known; a folder called "~somebody" is meant by "./~somebody".
    """
    if isinstance(value, str):
        if (path := os.path.expanduser(value)).startswith("~"):
            raise UserError(f"{value}: no such home folder; write ./{value} if it is the name of a file")
        return path
    if isinstance(value, dict):
        return {key: with_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(with_home, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{field.name: with_home(getattr(value, field.name))
                                             for field in dataclasses.fields(value)})
    return value


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `--config` reads back."""
    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: {"model": {"residual": True}} -> {"model.residual": True}."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def plain(value: Any, leaf: Callable[[Any], Any] = lambda it: it) -> Any:
    """A nested value with its tuples as lists, as YAML and JSON read it back, and what is no dict or list by `leaf`."""
    if isinstance(value, dict):
        return {key: plain(item, leaf) for key, item in value.items()}
    return [plain(item, leaf) for item in value] if isinstance(value, (list, tuple)) else leaf(value)
