"""Settings that were renamed or removed: refused in a configuration, with a remedy; read in a stored run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


def _same(value: Any) -> Any:
    return value


def _fraction(every: int) -> float:
    """One document in `every`, as a fraction; 0 stays 0."""
    return 1.0 / every if every else 0.0


def _residual_init(scaled: bool) -> str:
    return "scaled" if scaled else "normal"


def _trackers(tensorboard: bool) -> list[str]:
    return ["tensorboard"] if tensorboard else []


class Renamed(NamedTuple):
    """new: the dotted name of today, in the same section or below it. convert: an old value into a new one.

    example: an old value whose conversion shows people what to write; None where values are the same.
    """

    new: str
    convert: Callable[[Any], Any] = _same
    example: Any = None


RENAMED: dict[str, Renamed] = {
    "data.heldout_every": Renamed("data.validation_fraction", _fraction, 20),
    "data.lanes": Renamed("data.stream_shards"),
    "kernels.attention": Renamed("kernels.operators.attention"),
    "model.scaled_residual_init": Renamed("model.residual_init", _residual_init, True),
    "monitor.tensorboard": Renamed("monitor.trackers", _trackers, True),
    "parallel.checkpoint_every": Renamed("parallel.activation_checkpointing_every"),
    "schedule.decay_share": Renamed("schedule.decay_fraction"),
    "schedule.final_share": Renamed("schedule.min_lr_ratio"),
}
"""Old dotted name (N for an index in a list): its new name."""

_LIVE_CACHE = (
    "live sources do not keep tokens on disk any more; leave it out, or set live: false to tokenize the "
    "source once, before training"
)
REMOVED: dict[str, str] = {
    "data.sources.N.cache_live_tokens": _LIVE_CACHE,
    "data.sources.N.write_through": _LIVE_CACHE,
}
"""Dotted name of a setting that is gone: the remedy. Stored runs are read without it."""


def with_new_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, as a dict of JSON values, under the names of today; the rest is copied as it is."""
    known = copy.deepcopy(dict(content))
    for gone in REMOVED:
        *sections, name = gone.split(".")
        for section in _sections(known, sections):
            section.pop(name, None)
    for old, (new, convert, _) in RENAMED.items():
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
