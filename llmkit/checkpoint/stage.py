"""First step of a save: what a checkpoint of this moment holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmkit.checkpoint.pieces import Piece

CHUNK = 2**30
"""Bytes of host memory that are asked for at a time: a power of two, to which page-locked memory is rounded
up."""
_ALIGNMENT = 64
"""Of the copy of a piece, in bytes: a line of the cache."""


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


class HostMemory:
    """Room for the pieces of one rank, kept from one save to the next.

    Memory that is new to a process costs more time than the copy: a fault for each of its pages, and far more
    where it is page-locked, as it is for pieces of a GPU.
    size: bytes that all pieces together take, as `room_for` counts them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._chunks: list[Tensor] = []

    def copy(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The pieces with data in this memory, complete when this returns; the copies of before are gone."""
        copies: list[Piece] = []
        number = used = 0
        for piece in pieces:
            data = piece.data.detach()
            room = _aligned(data.nbytes)
            while number < len(self._chunks) and used + room > len(self._chunks[number]):
                number, used = number + 1, 0
            if number == len(self._chunks):
                self._chunks.append(self._chunk(room, pinned=data.is_cuda))
            there = self._chunks[number][used : used + data.nbytes].view(data.dtype)
            copies.append(replace(piece, data=there.copy_(data, non_blocking=True)))
            used += room
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copies

    def _chunk(self, least: int, pinned: bool) -> Tensor:
        """The next chunk: no larger than what is still to come, but for the gaps between pieces."""
        left = self._size - sum(map(len, self._chunks))
        return torch.empty(max(least, min(CHUNK, left)), dtype=torch.uint8, pin_memory=pinned)


def room_for(pieces: Iterable[Piece]) -> int:
    """Bytes of host memory that copies of the pieces take."""
    return sum(_aligned(piece.data.nbytes) for piece in pieces)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def stage(snapshot: Snapshot, memory: HostMemory | None) -> Snapshot:
    """The snapshot of this moment, to be written.

    memory: where the pieces are copied to, so that training may go on while they are written. None: the
        snapshot refers to the engine's memory (and pieces that are made as they are asked for are made while
        they are written), so it must be on disk before the next step.
    """
    return snapshot if memory is None else replace(snapshot, pieces=memory.copy(snapshot.pieces))
