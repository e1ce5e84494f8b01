"""The keys of config dataclasses, as a JSON schema for editors and as a table for the documentation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import docstring_parser
from pydantic import TypeAdapter

from srcnn.runtime.settings import plain

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Key(NamedTuple):
    """A key of a config: its name with dots, such as "model.residual", its type and default in words, its text."""

    name: str
    type: str
    default: str
    text: str


def json_schema(config_class: Any) -> dict[str, Any]:
    """The JSON schema of the YAML files that `settings.parse` reads for a dataclass.

    Texts are those of the docstring's Args. Unknown keys are refused, as they are when a file is read; what only
    `__post_init__` checks, such as a range, is not in it.
    """
    schema = TypeAdapter(config_class).json_schema()
    _complete(schema, config_class, schema.get("$defs", {}))
    return {"$schema": DIALECT, **schema}


def _complete(schema: dict[str, Any], config_class: Any, definitions: dict[str, Any]) -> None:
    """Adds to the schema of a dataclass what Pydantic leaves out: texts, defaults made by factories, no other keys."""
    docstring = docstring_parser.parse(config_class.__doc__)
    texts = {argument.arg_name: " ".join((argument.description or "").split()) for argument in docstring.params}
    schema["description"] = docstring.short_description
    schema["additionalProperties"] = False
    for field in dataclasses.fields(config_class):
        key = schema["properties"][field.name]
        key.pop("title", None)
        key["description"] = texts[field.name]
        if dataclasses.is_dataclass(group := field.default_factory):
            _complete(definitions[group.__name__], group, definitions)
            schema.setdefault("patternProperties", {})[rf"^{field.name}\."] = True  # `model.residual: true` is read too
        elif field.default_factory is not dataclasses.MISSING:
            key["default"] = plain(field.default_factory())


def keys(schema: dict[str, Any]) -> list[Key]:
    """The keys of a schema in their order, those of groups after one another."""
    return list(_keys(schema, schema.get("$defs", {}), ""))


def _keys(schema: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[Key]:
    for name, key in schema["properties"].items():
        if "$ref" in key:
            yield from _keys(definitions[key["$ref"].rpartition("/")[2]], definitions, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, _type(key), json.dumps(key["default"]), key["description"])


def _type(key: dict[str, Any]) -> str:
    """A type in words: `"adam" or "sgd"`, `list of integer`."""
    if "enum" in key:
        return " or ".join(json.dumps(value) for value in key["enum"])
    if "const" in key:
        return json.dumps(key["const"])
    if "anyOf" in key:
        return " or ".join(map(_type, key["anyOf"]))
    if "prefixItems" in key:
        return f"{len(key['prefixItems'])} x {_type(key['prefixItems'][0])}"
    if key["type"] == "array":
        return f"list of {_type(key['items'])}"
    return {"object": "keys and values"}.get(key["type"], str(key["type"]))
