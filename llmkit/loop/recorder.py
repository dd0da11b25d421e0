"""Named numbers that hooks and models record, until the next row of metrics.jsonl takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from llmkit.errors import UserError
from llmkit.parallel.mesh import Mesh

Rule = Literal["mean", "sum", "max", "min", "last"]


@dataclass
class _Entry:
    """What was recorded under a name since the last row; the value of "mean" is the sum so far."""

    rule: Rule
    value: float | Tensor
    count: int = 1
    restored: bool = False
    """Whether it is that of a checkpoint, from before whatever records now."""

    def add(self, value: float | Tensor, count: int = 1) -> None:
        """Takes another value, of a later step or of another rank."""
        if self.rule in ("mean", "sum"):
            self.value = self.value + value
        elif self.rule == "last":
            self.value = value
        else:
            self.value = _extreme(self.rule == "max", self.value, value)
        self.count += count

    def result(self) -> float:
        return float(self.value) / (self.count if self.rule == "mean" else 1)


def _extreme(largest: bool, a: float | Tensor, b: float | Tensor) -> float | Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b) if largest else torch.minimum(a, b)
    if isinstance(b, Tensor):
        a, b = b, a
    if isinstance(a, Tensor):
        return a.clamp(min=b) if largest else a.clamp(max=b)
    return max(a, b) if largest else min(a, b)


class Recorder:
    """Numbers by name. Several since the last row, and those of several ranks, become one by their rule:
    their mean, sum, maximum or minimum, or the last one, which is that of rank 0.

    columns: names that rows have already. gathers: whether ranks may have recorded numbers of their own;
    must be the same on all ranks.
    """

    def __init__(self, mesh: Mesh, columns: Sequence[str] = (), gathers: bool = True) -> None:
        self._mesh, self._columns = mesh, frozenset(columns)
        self._gathers = gathers and mesh.world_size > 1
        self._entries: dict[str, _Entry] = {}

    def record(self, name: str, value: float | Tensor, reduce: Rule = "mean") -> None:
        """Records a number, or a scalar on a device, which is not waited for.

        Raises UserError for a name that rows have already, for a tensor that is no scalar, and for another
        rule than before.
        """
        if name in self._columns:
            raise UserError(f"record: {name!r} is a column of llmkit's own; a hook or an extra needs another")
        if reduce not in get_args(Rule):
            raise UserError(f"record: reduce={reduce!r} of {name!r} is none of {', '.join(get_args(Rule))}")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise UserError(f"record: {name!r} is a tensor of shape {tuple(value.shape)}, not a scalar")
            value = value.detach().double().reshape(())
        else:
            value = float(value)
        entry = self._entries.get(name)
        if entry is None or (entry.restored and entry.rule != reduce):
            self._entries[name] = _Entry(reduce, value)
        elif entry.rule != reduce:
            raise UserError(f"record: {name!r} was recorded with reduce={entry.rule!r} and {reduce!r}")
        else:
            entry.add(value)

    def state(self) -> list[list[list[Any]]]:
        """What no row has taken yet, of each rank, as JSON for a checkpoint; on ranks other than 0, anything.

        Waits for the device. Collective, unless ranks record nothing of their own.
        """
        own = [[name, e.rule, repr(float(e.value)), e.count] for name, e in self._entries.items()]
        if not self._gathers:
            return [own]
        return [json.loads(content) for content in self._mesh.gather_bytes(json.dumps(own).encode())]

    def load_state(self, ranks: Sequence[Sequence[Sequence[Any]]]) -> None:
        """Goes on with what `state` gave on rank 0, which all ranks know.

        Each rank takes its own, so that sums are added up in the same order as without a checkpoint; what
        ranks recorded that are no more goes to those that are.
        """
        self._entries = {}
        rank, size = self._mesh.rank, self._mesh.world_size
        for number, recorded in list(enumerate(ranks))[rank::size]:
            for name, rule, text, count in recorded:
                if (entry := self._entries.get(name)) is None:
                    if name not in self._columns and (rule != "last" or number == rank):
                        self._entries[name] = _Entry(rule, float(text), count, restored=True)
                elif rule != "last":
                    entry.add(float(text), count)

    def take(self) -> Recorded:
        """What was recorded since the last call."""
        entries, self._entries = self._entries, {}
        return Recorded(entries, self._mesh, self._gathers)


class Recorded:
    """What was recorded up to a row. tensors: the values that are on a device, for the copy to the host."""

    def __init__(self, entries: dict[str, _Entry], mesh: Mesh, gathers: bool) -> None:
        self._entries, self._mesh, self._gathers = entries, mesh, gathers
        self._on_device = [entry for entry in entries.values() if isinstance(entry.value, Tensor)]

    @property
    def tensors(self) -> list[Tensor]:
        return [entry.value for entry in self._on_device if isinstance(entry.value, Tensor)]

    def reduce(self, values: Sequence[float]) -> dict[str, float]:
        """The numbers by name; on rank 0 they are reduced over all ranks, in one exchange for all of them.

        values: those of `tensors`. Collective, unless ranks record nothing of their own.
        """
        for entry, value in zip(self._on_device, values, strict=True):
            entry.value = value
        if self._gathers:
            own = {name: (e.rule, e.value, e.count) for name, e in self._entries.items() if e.rule != "last"}
            _, *others = self._mesh.gather_bytes(json.dumps(own).encode()) or [b""]
            for content in others:
                for name, (rule, value, count) in json.loads(content).items():
                    if name in self._entries:
                        self._entries[name].add(value, count)
                    else:
                        self._entries[name] = _Entry(rule, value, count)
        return {name: entry.result() for name, entry in self._entries.items()}
