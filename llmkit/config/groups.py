"""Which parameters are updated alike: the rules for all, and what `optimizer.groups` says of some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from llmkit.config.adapters import trained_tensors
from llmkit.config.derive import known_vocab_size, resolved_model
from llmkit.config.mistakes import Mistake, display, listed
from llmkit.config.optimizer_section import Optimizer, ParameterGroup
from llmkit.config.parameters import FullTensor
from llmkit.config.patterns import kind_of, matches, nearest
from llmkit.config.settings import Settings
from llmkit.errors import UserError

SHOWN = 3
"""Parameters that a message names at most."""
NO_ENTRY = -1
"""Stands for the index of an entry of `optimizer.groups` where none matches."""


@dataclass(frozen=True)
class Group:
    """Parameters that one optimizer updates alike. names: in the model's order.

    optimizer: "adamw", "muon" or the name of a registered one. The values are those of the configuration;
    each step multiplies some of them.
    """

    optimizer: str
    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    momentum: float


def assign(tensors: Sequence[FullTensor], config: Optimizer) -> list[Group]:
    """Every full tensor in its group, in an order that is the same for every layout.

    Where no entry of `optimizer.groups` matches: Muon, if asked for, for the hidden matrices, AdamW or a
    registered optimizer for the rest; weight decay for what has two dimensions or more. An entry replaces
    the values that it gives for the parameters that its patterns match; its weight decay is for all of them.
    """
    entries = entries_of([tensor.name for tensor in tensors], config)
    found: dict[tuple[bool, int, bool, str], list[str]] = {}
    for tensor in tensors:
        entry = entries[tensor.name][0] if tensor.name in entries else NO_ENTRY
        rule = _rule(config, None if entry == NO_ENTRY else config.groups[entry], tensor)
        key = rule == "muon", entry, len(tensor.shape) < 2, rule
        found.setdefault(key, []).append(tensor.name)
    return [_group(config, *key[1:], tuple(names)) for key, names in sorted(found.items())]


def _rule(config: Optimizer, entry: ParameterGroup | None, tensor: FullTensor) -> str:
    """Name of the optimizer of a tensor that this entry matches, or none."""
    name = (entry and entry.name) or config.name
    return "adamw" if name == "muon" and not tensor.hidden else name


def _group(config: Optimizer, entry: int, vectors: bool, rule: str, names: tuple[str, ...]) -> Group:
    given = None if entry == NO_ENTRY else config.groups[entry]
    own = {} if given is None else given.model_dump(exclude={"params", "name"}, exclude_none=True)
    decay = 0.0 if vectors else config.weight_decay
    values = {
        "learning_rate": config.learning_rate, "weight_decay": decay, "betas": config.betas,
        "eps": config.eps, "momentum": config.momentum, **own,
    }  # fmt: skip
    return Group(rule, names, **values)


def entries_of(names: Sequence[str], config: Optimizer) -> dict[str, list[int]]:
    """Name of a full tensor -> indices of the entries of `optimizer.groups` that match it, where any does."""
    found: dict[str, list[int]] = {}
    for index, entry in enumerate(config.groups):
        for name in names:
            if any(matches(pattern, name) for pattern in entry.params):
                found.setdefault(name, []).append(index)
    return found


def check_groups(s: Settings) -> Iterator[Mistake]:
    """Checks that each pattern matches something, that no parameter is in two groups or half in one, and that
    Muon gets hidden matrices only."""
    config, at = s.config.optimizer, "optimizer.groups"
    tensors = _tensors(s)
    if not tensors:
        return
    names = [tensor.name for tensor in tensors]
    entries = entries_of(names, config)
    for index, entry in enumerate(config.groups):
        path = f"{at}.{index}"
        for pattern in entry.params:
            if not any(matches(pattern, name) for name in names):
                what = f"{{0}}: no parameter matches {display(pattern)}"
                yield s.mistake(what, f"{path}.params", note=nearest(pattern, names))
        mine = [tensor for tensor in tensors if index in entries.get(tensor.name, ())]
        if entry.name == "muon" and (others := [tensor.name for tensor in mine if not tensor.hidden]):
            note = "Muon is for the matrices of the blocks; put the others into a group of their own"
            what = f"{{0}} cannot update {listed(others, SHOWN)}"
            yield s.mistake(what, f"{path}.name", note=note)
    yield from _overlaps(s, entries)
    yield from _split(s, tensors, entries)


def group_remarks(s: Settings) -> Iterator[str]:
    """Notes on values of groups that the optimizers of their parameters do not have."""
    config = s.config.optimizer
    tensors = _tensors(s)
    entries = entries_of([tensor.name for tensor in tensors], config)
    for index, entry in enumerate(config.groups):
        rules = {_rule(config, entry, each) for each in tensors if index in entries.get(each.name, ())}
        rule = rules.pop() if len(rules) == 1 else ""
        idle = {"muon": ("betas", "eps"), "adamw": ("momentum",)}.get(rule, ())
        for name in idle:
            if getattr(entry, name) is not None:
                given = s.describe(f"optimizer.groups.{index}.{name}")
                yield f"{given} has no effect: {rule} updates all parameters of the group"


def _tensors(s: Settings) -> Sequence[FullTensor]:
    """All that is trained, where there are groups; none where the sizes make no model: see `check_model`."""
    if not s.config.optimizer.groups:
        return ()
    try:  # the size of the vocabulary changes no name
        model = resolved_model(s.config, known_vocab_size(s.config, s.facts.tokenizer_size) or 1)
        return trained_tensors(model.tensors, s.config.train.lora)
    except (UserError, ValueError):
        return ()


def _overlaps(s: Settings, entries: Mapping[str, Sequence[int]]) -> Iterator[Mistake]:
    twice: dict[tuple[int, int], list[str]] = {}
    for name, indices in entries.items():
        for second in indices[1:]:
            twice.setdefault((indices[0], second), []).append(name)
    for pair, names in twice.items():
        what = f"{{0}} and {{1}} both match {listed(names, SHOWN)}"
        note = "a parameter can be in one group only: narrow one of the patterns"
        yield s.mistake(what, *(f"optimizer.groups.{index}.params" for index in pair), note=note)


def _split(
    s: Settings, tensors: Sequence[FullTensor], entries: Mapping[str, Sequence[int]]
) -> Iterator[Mistake]:
    """Full tensors of one stored parameter that are not in the same group; one message a group."""
    stored: dict[str, list[str]] = {}
    for tensor in tensors:
        stored.setdefault(tensor.stored_in, []).append(tensor.name)
    reported: set[int] = set()
    for together in stored.values():
        found = [(entries.get(name) or [NO_ENTRY])[0] for name in together]
        index = max(found)
        if len(set(found)) == 1 or index in reported:
            continue
        reported.add(index)
        inside = [name for name, entry in zip(together, found, strict=True) if entry == index]
        outside = [name for name, entry in zip(together, found, strict=True) if entry != index]
        what = f"{{0}} matches {listed(inside)}, but not {listed(outside)}"
        note = "these lie in one matrix in memory, which one group must have: match all of them or none"
        yield s.mistake(what, f"optimizer.groups.{index}.params", note=note)


def _shown(names: Sequence[str], all_names: Sequence[str]) -> list[str]:
    """The kinds of which these are all names; of other kinds each name."""
    there, every = Counter(map(kind_of, names)), Counter(map(kind_of, all_names))
    kinds = {name: kind_of(name) for name in names}
    return list(dict.fromkeys(kind if there[kind] == every[kind] else name for name, kind in kinds.items()))


def describe_groups(config: Optimizer, tensors: Sequence[FullTensor]) -> list[dict[str, Any]]:
    """What each group has, and its values, for the manifest and for people."""
    sizes = {tensor.name: prod(tensor.shape) for tensor in tensors}
    return [
        {
            "parameters": _shown(group.names, list(sizes)),
            "elements": sum(sizes[name] for name in group.names),
            "optimizer": group.optimizer,
            "learning_rate": group.learning_rate,
            **({} if group.optimizer == "muon" else {"betas": list(group.betas), "eps": group.eps}),
            **({} if group.optimizer == "adamw" else {"momentum": group.momentum}),
            "weight_decay": group.weight_decay,
        }
        for group in assign(tensors, config)
    ]
