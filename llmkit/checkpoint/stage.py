"""First step of a save: what a checkpoint of this moment holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmkit.checkpoint.pieces import Piece


@dataclass(frozen=True)
class Snapshot:
    """What one rank gives to a checkpoint; of all but `pieces` only rank 0's is taken.

    step: how many steps had been taken.
    pieces: all ranks' together are each tensor, every element once.
    state: step, tokens, position in the data, ...; model, config: what the run was built from. JSON.
    extra_files: name -> content, such as tokenizer.json.
    """

    step: int
    pieces: Iterable[Piece]
    state: dict[str, Any]
    model: dict[str, Any]
    config: dict[str, Any]
    extra_files: dict[str, bytes]


def stage(snapshot: Snapshot, copy: bool) -> Snapshot:
    """The snapshot of this moment, to be written.

    copy: put the pieces into host memory of their own, so that training may go on while they are written.
        Without it the snapshot refers to the engine's memory (and pieces that are made as they are asked for
        are made while they are written), so it must be on disk before the next step.
    """
    if not copy:
        return snapshot
    pieces = [replace(piece, data=_on_host(piece.data)) for piece in snapshot.pieces]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return replace(snapshot, pieces=pieces)


def _on_host(data: Tensor) -> Tensor:
    """A copy in host memory, there once the device has done its work; page-locked if it comes from a GPU."""
    host = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
    return host.copy_(data.detach(), non_blocking=True)
