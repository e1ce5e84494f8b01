"""The JSON schema of config dataclasses, by which editors complete and check YAML files."""

from __future__ import annotations

import dataclasses
from typing import Any

import docstring_parser
from pydantic import TypeAdapter

from srcnn.runtime.config_help import texts_of
from srcnn.runtime.settings import plain

DIALECT = "https://json-schema.org/draft/2020-12/schema"


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
    texts = texts_of(config_class.__doc__)
    schema["description"] = docstring_parser.parse(config_class.__doc__).short_description
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
