"""Numbers on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Scalars:
    """Copies tensors of one device to the host in the background, to be read a step later.

    On a GPU the copy is queued behind the work before it and an event marks its end: reading waits for that
    work alone, not for what was queued since.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        packed = torch.cat([value.detach().double().reshape(-1) for value in values])
        self._event: torch.cuda.Event | None = None
        if packed.is_cuda:
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            packed = host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        self._packed = packed

    def read(self) -> list[float]:
        """All elements, one tensor behind the other."""
        if self._event is not None:
            self._event.synchronize()
        return self._packed.tolist()
