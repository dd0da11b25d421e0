"""Jinja as Hugging Face's chat templates expect it, in a sandbox."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

BEGIN, END = "\ufdd1", "\ufdd2"
"""Noncharacters of Unicode around what `{% generation %}` blocks enclose."""


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with what these templates expect, and without chance.

    generation_tags: `{% generation %}` blocks of the templates that were parsed.
    """

    def __init__(self) -> None:
        self.generation_tags = 0
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        del self.globals["lipsum"], self.filters["random"]
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: the assistant's part of the text, put between marks."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        self.environment.generation_tags += 1  # type: ignore[attr-defined]
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Macro) -> str:
        return f"{BEGIN}{caller()}{END}"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
