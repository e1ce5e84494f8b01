"""The help page of a config dataclass: the settings by subject, explained by the docstrings of the dataclasses.

A config class may have two class variables, of subject -> keys: COMMON, which `--help` shows, and SUBJECTS, which
`--help-all` shows too. A key stands for all below it ("optimizer" for "optimizer.lr" and the others).
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import docstring_parser
import yaml

KINDS: dict[Any, list[str]] = {bool: ["true", "false"], int: ["N"], float: ["X"], str: ["TEXT"], type(None): ["null"]}
IN_WORDS = {"N": "a whole number", "X": "a number", "TEXT": "a text"}
WIDTH = 78  # characters of a description
REST = "other settings"
CONFIG_HELP = "YAML file with any of the settings, or the name of a shipped one (`srcnn configs` lists them)"


class Setting(NamedTuple):
    """A key of a config: the values or kinds of value that it takes, what it means, its default as YAML."""

    key: str
    kinds: list[str]
    text: str
    default: str

    @property
    def expected(self) -> str:
        """What to give for it, such as "constant or cosine" and "[...], such as [9, 1, 5]"."""
        example = f", such as {self.default}" if self.kinds[0] in ("[...]", "{...}") and len(self.default) > 2 else ""
        *others, last = (IN_WORDS.get(kind, kind) for kind in self.kinds)
        return f"{', '.join(others)}{' or ' if others else ''}{last}{example}"


def settings_of(config_class: Any, prefix: str = "") -> Iterator[Setting]:
    """The settings of a config dataclass and of those in it, in their order."""
    texts = {name: text for each in reversed(config_class.__mro__)  # a subclass explains its own fields only
             for name, text in texts_of(each.__doc__ or "").items()}
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings_of(hints[field.name], f"{key}.")
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        yield Setting(key, _kinds(hints[field.name]), texts.get(field.name, ""), _as_yaml(default))


def texts_of(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument, on one line."""
    return {each.arg_name: " ".join((each.description or "").split())
            for each in docstring_parser.parse(docstring, docstring_parser.DocstringStyle.GOOGLE).params}


def _kinds(hint: Any) -> list[str]:
    """What values of this type look like."""
    if hint in KINDS:
        return KINDS[hint]
    if get_origin(hint) is Literal:
        return list(map(str, get_args(hint)))
    if get_origin(hint) in (list, tuple):
        (item, *_) = get_args(hint)
        return [f"[{'|'.join(_kinds(item))}, ...]" if get_origin(item) is Literal else "[...]"]
    return ["{...}"] if get_origin(hint) is dict else [kind for each in get_args(hint) for kind in _kinds(each)]


def _as_yaml(value: Any) -> str:
    """On one line, such as [9, 1, 5]."""
    listed = list(value) if isinstance(value, tuple) else value
    if isinstance(value, str):
        return value or "empty"
    text = yaml.safe_dump(listed, default_flow_style=True, width=1000).removesuffix("\n...\n")
    return text.strip()


def help_page(
    config_class: Any, program: str, docstring: str, options: Mapping[str, str], show_all: bool = False
) -> str:
    """The help page.

    Args:
        docstring: the usage; after a blank line what the program does; after another one examples, as they are.
        options: what the program takes besides settings, as a usage line has it ("--processes N"), and its meaning.
    """
    settings = {setting.key: setting for setting in settings_of(config_class)}  # those not shown yet
    common = _by_subject(getattr(config_class, "COMMON", {}), settings)
    subjects = _by_subject(getattr(config_class, "SUBJECTS", {}), settings)
    if settings:
        subjects[REST] = list(settings.values())
    num_more = sum(map(len, subjects.values()))
    usage, _, rest = docstring.partition("\n\n")
    text, _, examples = rest.partition("\n\nexamples:")
    description = "\n\n".join([textwrap.fill(text, WIDTH), *([f"examples:{examples.rstrip()}"] if examples else [])])
    end = f"--help-all explains the other {num_more} settings." if num_more and common and not show_all else ""
    parser = argparse.ArgumentParser(
        prog=program, usage=_escaped(" ".join(usage.split())), description=description, add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=end)
    group = parser.add_argument_group("options")
    for option, meaning in {"--config FILE": CONFIG_HELP, **options}.items():
        name, metavar = option.split(" ")
        group.add_argument(name, metavar=metavar, help=_escaped(meaning))
    group.add_argument("--help", "--help-all", action="store_true", help="this page; with all settings, by subject")
    group.add_argument("--print_config", action="store_true", help="print the settings that result, as YAML, and exit")
    shown = {**common, **subjects} if show_all or not common else common
    for subject, found in shown.items():
        group = parser.add_argument_group(subject)
        for key, kinds, meaning, default in found:
            explained = f"{meaning.rstrip('.')} (default: {default})"
            group.add_argument(f"--{key}", metavar="|".join(kinds), help=_escaped(explained))
    return parser.format_help()


def _by_subject(subjects: Mapping[str, tuple[str, ...]], settings: dict[str, Setting]) -> dict[str, list[Setting]]:
    """Takes the settings of each subject out of `settings`."""
    found: dict[str, list[Setting]] = {}
    for subject, names in subjects.items():
        keys = [key for name in names for key in list(settings) if key == name or key.startswith(f"{name}.")]
        found[subject] = [settings.pop(key) for key in keys]
    return found


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
