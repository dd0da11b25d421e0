"""Inputs of recomputed blocks, kept in the host's memory from the forward to the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class HostCopies:
    """The inputs of the blocks of one forward pass.

    On a GPU the copies are made on a stream of their own, beside computing: to page-locked memory as a block
    begins, and back while the block behind it is recomputed; no more than two are on the device then. All
    memory there belongs to the stream that computes. On a CPU, whose memory is the host's, nothing is
    copied, unless `always` (tests).
    """

    def __init__(self, device: torch.device, always: bool = False) -> None:
        self.copies = device.type == "cuda" or always
        self.stream = _copy_stream(device) if device.type == "cuda" else None
        self.last: _Copy | None = None

    @contextmanager
    def kept(self, x: Tensor) -> Iterator[None]:
        """In here, what autograd saves of x, the input of a block, is saved on the host."""
        if not self.copies or not torch.is_grad_enabled():
            yield
            return
        place, made = x.data_ptr(), list[_Copy]()

        def pack(saved: Tensor) -> Any:
            if isinstance(saved, nn.Parameter) or saved.shape != x.shape or saved.data_ptr() != place:
                return saved
            if not made:
                made.append(_Copy(saved, self.last, self.stream))
                self.last = made[0]
            return made[0]

        def unpack(kept: Any) -> Tensor:
            found: Tensor = kept.take() if isinstance(kept, _Copy) else kept
            return found

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: PyTorch keeps freed memory, of the device and of the host, by streams."""
    return torch.cuda.Stream(device)


class _Copy:
    """A tensor on the host. before: the copy that the backward pass needs next.

    source: the tensor itself, until the next copy begins. back: what was brought, or is on its way.
    done: the last copy that was begun, to the host or back.
    """

    def __init__(self, x: Tensor, before: _Copy | None, stream: torch.cuda.Stream | None) -> None:
        self.source: Tensor | None = None
        self.back: Tensor | None = None
        self.before, self.stream, self.device = before, stream, x.device
        x = x.detach()
        if stream is None:
            self.host = x.to("cpu", copy=True)
            return
        if before is not None:
            before.release()
        self.host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            self.host.copy_(x, non_blocking=True)
        self.source, self.done = x, stream.record_event()

    def release(self) -> None:
        """Drops the tensor itself: what is computed from here on may have its memory."""
        if self.source is not None:
            torch.cuda.current_stream(self.device).wait_event(self.done)
            self.source = None

    def fetch(self) -> None:
        """Starts to bring it back, if it is not there and that is not begun."""
        if self.stream is None or self.source is not None or self.back is not None:
            return
        self.back = torch.empty(self.host.shape, dtype=self.host.dtype, device=self.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # which may still use that memory
        with torch.cuda.stream(self.stream):
            self.back.copy_(self.host, non_blocking=True)
        self.done = self.stream.record_event()

    def take(self) -> Tensor:
        """The tensor on its device; starts to bring back the one before."""
        if self.stream is None:
            return self.host.to(self.device, copy=True)
        self.fetch()
        found = self.back if self.source is None else self.source
        assert found is not None
        torch.cuda.current_stream(self.device).wait_event(self.done)
        self.source = self.back = None
        if self.before is not None:
            self.before.fetch()
        return found

    def __del__(self) -> None:
        if self.back is not None and self.stream is not None:  # brought, or on its way, and never taken
            self.back.record_stream(self.stream)
