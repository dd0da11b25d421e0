"""The training loss of each data source, over the steps since the last row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class SourceLosses:
    """Adds up nats and targets of each source, on the device; the same on all ranks.

    names: of the sources, in the order of `StepResult.by_source`.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names, self._device = list(names), device
        self._sums: Tensor | None = None

    def add(self, sums: Tensor) -> None:
        """Adds a step. sums: (sources, 2) fp64."""
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self) -> Tensor | None:
        """(sources, 2): the sums since the last call; None where there was nothing."""
        sums, self._sums = self._sums, None
        return sums

    def columns(self, values: Sequence[float]) -> dict[str, float]:
        """The mean loss of each source that had a target. values: what `take` gave, flat."""
        each = zip(self._names, values[::2], values[1::2], strict=True)
        return {f"loss/{name}": nats / targets for name, nats, targets in each if targets}

    def state(self) -> dict[str, list[str]]:
        """What no row has taken yet, as JSON for a checkpoint; waits for the device."""
        if self._sums is None:
            return {}
        return {
            name: [repr(value) for value in values]
            for name, values in zip(self._names, self._sums.tolist(), strict=True)
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after `state`; what it has of sources that are no more is dropped."""
        self._sums = None
        if state:
            values = [[float(text) for text in state.get(name, ("0", "0"))] for name in self._names]
            self._sums = torch.tensor(values, dtype=torch.float64, device=self._device)
