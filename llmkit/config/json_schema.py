"""The settings as a JSON schema, by which editors complete, explain and check a configuration file."""

from __future__ import annotations

from typing import Any

from llmkit.config.keys import all_keys
from llmkit.config.schema import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def editor_schema(schema: type[Config] = Config) -> dict[str, Any]:
    """The JSON schema of one configuration file, with a description and the default of each setting.

    It differs from that of a whole configuration: `extends` and `reset` are keys of a file, and what is
    required may stand in another file, but in entries of lists, which are replaced as a whole.
    """
    described = schema.model_json_schema()
    entries = set(_entry_classes(described))
    for name, section in [("", described), *described["$defs"].items()]:
        if name not in entries:
            section.pop("required", None)
        for field in section.get("properties", {}).values():
            field.pop("title", None)  # the name of the key once more, in capitals
            if "description" in field:
                field["description"] = " ".join(field["description"].split())
    sections = [key.path for key in all_keys(schema).values() if key.is_section and not key.is_list]
    own = {
        "extends": _one_or_more({"type": "string"}, "Files that are merged under this one, relative to it."),
        "reset": _one_or_more(
            {"enum": [path for path in sections if ".N" not in path]},
            "Sections that start from the defaults here, whatever the files under this one say of them.",
        ),
    }
    described["properties"] = {**own, **described["properties"]}
    return {"$schema": DIALECT, **described, "title": "llmkit configuration"}


def _entry_classes(schema: Any) -> list[str]:
    """The names of the classes of list entries, anywhere in a schema."""
    if isinstance(schema, list):
        return [name for each in schema for name in _entry_classes(each)]
    if not isinstance(schema, dict):
        return []
    items = schema.get("items")
    own = [items["$ref"].rpartition("/")[2]] if isinstance(items, dict) and "$ref" in items else []
    return own + [name for each in schema.values() for name in _entry_classes(each)]


def _one_or_more(value: dict[str, Any], description: str) -> dict[str, Any]:
    return {"anyOf": [value, {"type": "array", "items": value}], "description": description}
