"""Device scalars on their way to the host."""

from __future__ import annotations

import torch

from llmkit.engine.base import StepResult


class Scalars:
    """Copies a step's scalars to the host in the background, to be read a step later.

    On a GPU the copy is queued behind the step and an event marks its end: reading waits for that
    step alone, not for those queued since.
    """

    def __init__(self, result: StepResult) -> None:
        self.targets = result.targets
        packed = torch.stack([result.loss_sum, result.grad_norm.double(), result.skipped.double()])
        self._event: torch.cuda.Event | None = None
        if packed.is_cuda:
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            packed = host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        self._packed = packed

    def read(self) -> tuple[float | None, float | None, bool]:
        """(mean loss in nats per target, gradient norm, whether the update was skipped).

        A step without a target has no loss and no gradient: None.
        """
        if self.targets == 0:
            return None, None, False
        if self._event is not None:
            self._event.synchronize()
        loss_sum, norm, skipped = self._packed.tolist()
        return loss_sum / self.targets, norm, skipped > 0.0
