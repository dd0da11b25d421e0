"""Patterns of names of parameters, as `optimizer.groups` and `train.lora` take them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import translate
from functools import cache

from llmkit.config.mistakes import listed


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name: * is any text, dots included, ? a character, [ab] one of these."""
    return _compiled(pattern).match(name) is not None


def nearest(pattern: str, names: Sequence[str]) -> str:
    """The kinds of parameters whose names resemble a pattern most; all kinds where none does."""
    kinds = kinds_of(names)
    close = difflib.get_close_matches(pattern[:200], kinds, n=3, cutoff=0.8)
    return f"did you mean {' or '.join(close)}?" if close else f"the parameters are {listed(kinds, 40)}"


def kinds_of(names: Sequence[str]) -> list[str]:
    """Names with * for the numbers in them, each once: "blocks.*.norm.weight" for all blocks."""
    return list(dict.fromkeys(map(kind_of, names)))


def kind_of(name: str) -> str:
    """A name with * for the numbers in it."""
    return re.sub(r"(?<=\.)[0-9]+(?=\.|$)", "*", name)
