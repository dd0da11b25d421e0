"""First step of a save: what a checkpoint of this moment holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmkit.checkpoint.pieces import Piece

CHUNK = 2**30
"""Bytes of host memory that are taken at a time: a power of two, to which PyTorch rounds page-locked memory
up (ATen/core/CachingHostAllocator.h). A piece that is larger has a chunk of its own."""
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
    """Room for copies of the pieces of one rank, kept from one save to the next.

    Memory that is new to a process costs more time than a copy into it: a fault for each of its pages, and
    far more where it is page-locked, as it is for pieces of a GPU.
    """

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []

    def allocate(self, rooms: Iterable[int], pinned: bool) -> None:
        """Takes memory for pieces of such `rooms`, in their order, and touches all of it.

        pinned: page-locked. Raises RuntimeError where there is none.
        """
        for size in chunk_sizes(rooms, pinned):
            self._add(size, pinned)

    def copy(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The pieces with data in this memory, complete when this returns; the copies of before are gone."""
        copies: list[Piece] = []
        number = used = 0
        for piece in pieces:
            data, room = piece.data.detach(), room_for(piece)
            while number < len(self._chunks) and used + room > len(self._chunks[number]):
                number, used = number + 1, 0
            if number == len(self._chunks):  # a piece that was not expected
                self._add(room, data.is_cuda)
            there = self._chunks[number][used : used + data.nbytes].view(data.dtype)
            copies.append(replace(piece, data=there.copy_(data, non_blocking=True)))
            used += room
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copies

    def _add(self, size: int, pinned: bool) -> None:
        chunk = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._chunks.append(chunk if pinned else chunk.zero_())


def chunk_sizes(rooms: Iterable[int], pinned: bool) -> list[int]:
    """Bytes of the chunks that `HostMemory.allocate` takes for pieces of such `rooms`."""
    sizes = [0]
    for room in rooms:
        if sizes[-1] and sizes[-1] + room > CHUNK:
            sizes.append(0)
        sizes[-1] += room
    return [1 << (size - 1).bit_length() if pinned else size for size in sizes if size]


def room_for(piece: Piece) -> int:
    """Bytes of host memory that a copy of the piece takes."""
    return -(-piece.data.nbytes // _ALIGNMENT) * _ALIGNMENT


def stage(snapshot: Snapshot, memory: HostMemory | None) -> Snapshot:
    """The snapshot of this moment, to be written.

    memory: where the pieces are copied to, so that training may go on while they are written. None: the
        snapshot refers to the engine's memory (and pieces that are made as they are asked for are made while
        they are written), so it must be on disk before the next step.
    """
    return snapshot if memory is None else replace(snapshot, pieces=memory.copy(snapshot.pieces))
