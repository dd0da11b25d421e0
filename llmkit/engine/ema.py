"""The exponential moving average of the weights, of the fp32 masters that a rank holds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

PART = 2**24
"""Elements that are exchanged at a time."""


class MovingAverage:
    """The averages of some masters: fp32 tensors like them, on the same device.

    of: master -> its average, which begins as a copy.
    """

    def __init__(self, masters: Iterable[Tensor]) -> None:
        self.of = {master: master.detach().clone() for master in masters}
        # average -= share (average - master) is a step of gradient descent on (average - master)^2 / 2. With
        # these settings fused SGD descends along `weight_decay` average - `grad`, in one pass over memory and
        # few kernels, which do nothing where a tensor on the device (`found_inf`) says so.
        self._descent = torch.optim.SGD(list(self.of.values()), weight_decay=1.0, maximize=True, fused=True)

    @torch.no_grad()
    def update(self, share: float, skipped: Tensor | None = None) -> None:
        """Moves the averages towards the masters by a share of their distance.

        skipped: () fp32 on the device; where it is 1.0 nothing changes. Does not wait for the device.
        """
        for master, average in self.of.items():
            average.grad = master.detach()
        self._descent.param_groups[0]["lr"] = share
        self._descent.found_inf = skipped  # type: ignore[attr-defined]
        self._descent.step()
        self._descent.zero_grad()

    @torch.no_grad()
    def exchange(self) -> None:
        """Gives the masters the values of the averages, and the averages those of the masters."""
        for pair in self.of.items():
            for master, average in zip(*(each.view(-1).split(PART) for each in pair), strict=True):
                kept = master.clone()
                master.copy_(average)
                average.copy_(kept)
