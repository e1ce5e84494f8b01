"""YAML as configs have it: one document of plain values, each key once. What else YAML offers is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from srcnn.runtime.untrusted import InvalidInput, open_regular

CLASS_KEY = "class_path"  # jsonargparse imports the class that it names, and calls it
MAX_YAML_BYTES, MAX_YAML_DEPTH = 1 << 18, 20  # 4 s of parsing at the most


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2's booleans and floats, so that `no` is a word and 1e-4 a number; dates are words."""


_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:int")
_YamlLoader.yaml_implicit_resolvers = {
    first: kept for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT])
}
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)\Z"), list("tTfF"))
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(
    r"([-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.(?i:inf)|\.(?i:nan))\Z"), list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """Parses YAML of one document, without tags, aliases and keys that come twice.

    Raises:
        InvalidInput: it has these, is too long or too deep, or is not YAML.
    """
    try:
        if len(text) > MAX_YAML_BYTES:
            raise InvalidInput(f"is longer than {MAX_YAML_BYTES} characters")
        _check_events(yaml.parse(text, yaml.SafeLoader))
        return yaml.load(text, _YamlLoader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(" ".join(str(error).split()) or "nested too deeply") from error


def _check_events(events: Iterable[Any]) -> None:
    """Raises InvalidInput at what `load_yaml` does not take."""
    num_documents = 0
    open_nodes: list[tuple[set[str] | None, int]] = []  # lists (None) and mappings (keys seen); number of nodes in it
    for event in events:
        num_documents += isinstance(event, yaml.DocumentStartEvent)
        if num_documents > 1:
            raise InvalidInput("holds several documents (---); expected one")
        if isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        line = getattr(event.start_mark, "line", 0) + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise InvalidInput(f"line {line}: an alias (*name) or a tag (!name), which are not read")
        if len(open_nodes) == MAX_YAML_DEPTH:
            raise InvalidInput(f"line {line}: nested more than {MAX_YAML_DEPTH} deep")
        if open_nodes:
            keys, num_nodes = open_nodes[-1]
            open_nodes[-1] = keys, num_nodes + 1
            if keys is not None and num_nodes % 2 == 0:
                _check_key(event, keys, line)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((set() if isinstance(event, yaml.MappingStartEvent) else None, 0))


def _check_key(event: Any, keys: set[str], line: int) -> None:
    """Adds a key to those of its mapping. Raises InvalidInput where a config cannot have it."""
    if not isinstance(event, yaml.ScalarEvent):
        raise InvalidInput(f"line {line}: a key that is a list or a mapping")
    if CLASS_KEY in event.value.split("."):
        raise InvalidInput(f"line {line}: the key {CLASS_KEY}: a config cannot name a class")
    if event.value in keys:
        raise InvalidInput(f"line {line}: the key {event.value!r:.99} comes twice")
    keys.add(event.value)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a config file. Raises InvalidInput, which names it, as `load_yaml` does, or where it is not a mapping."""
    try:
        with open_regular(path, MAX_YAML_BYTES) as file:
            content = load_yaml(file.read().decode())
        if not isinstance(content, dict):
            raise InvalidInput("expected a mapping of keys to values")
        return content
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from error
