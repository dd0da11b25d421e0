"""Inputs of recomputed blocks, kept in the host's memory from the forward to the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class HostCopies:
    """The inputs of the blocks of one forward pass.

    On a GPU the copies are made on a stream of their own, beside computing: to page-locked memory as a block
    begins, and back while the block behind it is recomputed; no more than two are on the device then. On a
    CPU, whose memory is the host's, nothing is copied, unless `always` (tests).
    """

    def __init__(self, device: torch.device, always: bool = False) -> None:
        self.copies = device.type == "cuda" or always
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
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


class _Copy:
    """A tensor on the host. before: the copy that the backward pass needs next."""

    def __init__(self, x: Tensor, before: _Copy | None, stream: torch.cuda.Stream | None) -> None:
        self.before, self.stream, self.device = before, stream, x.device
        self.back: Tensor | None = None
        x = x.detach()
        if stream is None:
            self.host = x.to("cpu", copy=True)
            return
        self.host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            self.host.copy_(x, non_blocking=True)
        x.record_stream(stream)  # its memory is used again only when it is copied

    def fetch(self) -> None:
        """Starts to bring it back, if that is not done."""
        if self.back is None and self.stream is not None:
            with torch.cuda.stream(self.stream):
                self.back = self.host.to(self.device, non_blocking=True)
                self.done = self.stream.record_event()

    def take(self) -> Tensor:
        """The tensor on its device; starts to bring back the one before."""
        if self.stream is None:
            return self.host.to(self.device, copy=True)
        self.fetch()
        assert self.back is not None
        current = torch.cuda.current_stream(self.device)
        current.wait_event(self.done)
        self.back.record_stream(current)
        found, self.back = self.back, None
        if self.before is not None:
            self.before.fetch()
        return found
