"""The base class of optimizers that other people's code registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from llmkit.config.optimizer_section import Optimizer as Settings


class Optimizer(torch.optim.Optimizer):
    """An optimizer of fp32 tensors; a subclass says what one update of one tensor is, and what it remembers.

    llmkit sets the learning rate of each step, initialises the state to zeros and keeps it in checkpoints
    by its names. Weight decay is for matrices: `group["weight_decay"]` is 0 for norms and biases.
    """

    states: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors, of the parameter's shape, that it keeps for each parameter."""
    elementwise: ClassVar[bool] = False
    """Whether each element is updated without a look at the others. If not, layouts are refused that give it
    slices of tensors: ZeRO stages 1 to 3, and tensor parallelism."""
    found_inf: Tensor | None = None

    def __init__(self, groups: Sequence[dict[str, Any]], settings: Settings) -> None:
        """groups: of parameters, as PyTorch's optimizers take them. settings: the section `optimizer`."""
        super().__init__(list(groups), {"lr": settings.learning_rate, "weight_decay": settings.weight_decay})
        self.settings: Any = settings

    def update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """Changes `parameter` and `state` in place by one update.

        state: the tensors that `states` names, and "step", how many updates there were with this one, a
        scalar tensor. group: "lr", "weight_decay", "betas", "eps" and "momentum" of this step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no update(parameter, gradient, state, group)")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient; none where a gradient is not finite.

        Waits for the device to know that: a subclass that need not may have a `step` of its own, which heeds
        `found_inf`, a device scalar that is 1.0 where the step must change nothing.
        """
        assert closure is None
        if self.found_inf is not None and bool(self.found_inf):
            return None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {name: torch.zeros_like(parameter) for name in self.states}
                    state["step"] = torch.zeros((), device=parameter.device)
                state["step"] += 1.0
                self.update(parameter, parameter.grad, state, group)
        return None
