"""Random numbers of training: reseeded each step, so that no generator's state is ever saved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_step(seed: int, step: int, data_rank: int = 0) -> None:
    """Starts the generators of all devices anew for one step of one data-parallel rank.

    What dropout draws in a step then depends on nothing that happened before it: a resumed run draws
    what the uninterrupted one drew.
    """
    torch.manual_seed(_digest(f"{seed}:{step}:{data_rank}") >> 1)


@contextmanager
def own_stream(rank: int, device: torch.device) -> Iterator[int]:
    """Lets the ranks of a tensor-parallel group draw different numbers, for what is cut among them.

    Yields a number that all of them agree on, for what they hold alike (see `keyed_bits`): the next of
    the CPU's generator, which the group seeds alike. Afterwards the generators stand behind that draw.
    """
    agreed = int(torch.randint((1 << 63) - 1, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_digest(f"{agreed}:{rank}") >> 1)
        yield agreed


def keyed_bits(index: Tensor, key: Tensor) -> Tensor:
    """24 random bits for each index, int64; they depend on the index (below 2**32) and the key alone.

    Two rounds of a 32-bit hash (Mueller's), one with each half of the key. No product leaves int64: where
    torch.compile knows an index in advance, it reckons with it in whole numbers that do not wrap.
    """
    return _mix32(_mix32(index ^ (key & 0xFFFFFFFF)) ^ (key >> 32)) >> 8


def _mix32(x: Tensor) -> Tensor:
    """A permutation of 0 .. 2**32 - 1, int64, in which each bit of x moves half of the bits."""
    x = ((x ^ (x >> 16)) * 0x045D9F3B) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x045D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _digest(text: str) -> int:
    """64 bits that depend on all of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
