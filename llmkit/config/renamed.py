"""Settings that were renamed: refused in a configuration, with the new name; understood in a stored run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any


def _same(value: Any) -> Any:
    return value


def _fraction(every: int) -> float:
    """One document in `every`, as a fraction; 0 stays 0."""
    return 1.0 / every if every else 0.0


RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "data.heldout_every": ("data.validation_fraction", _fraction),
    "data.lanes": ("data.stream_shards", _same),
    "data.sources.N.write_through": ("data.sources.N.cache_live_tokens", _same),
    "kernels.attention": ("kernels.operators.attention", _same),
    "parallel.checkpoint_every": ("parallel.activation_checkpointing_every", _same),
    "schedule.decay_share": ("schedule.decay_fraction", _same),
    "schedule.final_share": ("schedule.min_lr_ratio", _same),
}
"""Old dotted name (N for an index in a list): the new one in the same section or below it, and how a value
is converted."""


def with_new_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, as a dict of JSON values, under the names of today; the rest is copied as it is."""
    known = copy.deepcopy(dict(content))
    for old, (new, convert) in RENAMED.items():
        *sections, name = old.split(".")
        for section in _sections(known, sections):
            if name in section:
                *below, new_name = new.split(".")[len(sections) :]
                value = convert(section.pop(name))
                for each in below:
                    section = section.setdefault(each, {})
                section[new_name] = value
    return known


def _sections(content: Any, path: list[str]) -> list[dict[str, Any]]:
    """The sections that a dotted path leads to, all entries where it goes through a list."""
    if not path:
        return [content] if isinstance(content, dict) else []
    if path[0] == "N":
        entries = content if isinstance(content, list) else []
        return [section for entry in entries for section in _sections(entry, path[1:])]
    return _sections(content[path[0]], path[1:]) if isinstance(content, dict) and path[0] in content else []
