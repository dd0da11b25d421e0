"""Our optimizers over the flat tensors in which DeepSpeed keeps a rank's slices of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

Around = Callable[[Tensor, torch.optim.Optimizer], None]


class FlatOptimizer(torch.optim.Optimizer):
    """What DeepSpeed takes for the optimizer.

    It is made of groups of parameters. DeepSpeed replaces these by flat tensors of its own and then calls
    `step` for all of them, or for some; each has an optimizer of its own, which `bind` names.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]]) -> None:
        super().__init__([{"params": list(group)} for group in groups], {})
        self.optimizers: dict[Tensor, torch.optim.Optimizer] = {}
        self.around: Around | None = None
        """Calls each update, if somebody wants to look at what it does."""

    def bind(self, optimizers: Mapping[Tensor, torch.optim.Optimizer]) -> None:
        """Flat tensor -> the optimizer that has this one parameter. DeepSpeed finds their state here."""
        self.optimizers = dict(optimizers)
        for optimizer in self.optimizers.values():
            optimizer.state = self.state

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of the flat tensors that are in the groups now."""
        assert closure is None
        for group in self.param_groups:
            for flat in group["params"]:
                optimizer = self.optimizers[flat]
                if self.around is None:
                    optimizer.step()
                else:
                    self.around(flat, optimizer)
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Not used: checkpoints hold pieces, which the engine writes into the state."""
        raise NotImplementedError
