"""Random numbers of training: generators are seeded at each step, so their states are never saved."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed_step(seed: int, step: int, data_rank: int = 0) -> None:
    """Seeds the generators of all devices for one step of one data-parallel rank.

    What dropout draws in a step then does not depend on earlier steps: a resumed run draws what the
    uninterrupted one drew.
    """
    number = _digest(f"{seed}:{step}:{data_rank}") >> 1
    # torch.manual_seed also notes a stack for each kind of device that is not in use: 0.2 to 0.5 ms.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


@contextmanager
def own_stream(rank: int, device: torch.device) -> Iterator[int]:
    """Inside, tensor-parallel ranks draw different numbers, for activations that are sharded.

    Yields a number that is the same on all of them, for activations that each of them holds (see
    `keyed_bits`): the next one of the CPU's generator, seeded alike on these ranks. Afterwards the generators
    continue behind that draw.
    """
    agreed = int(torch.randint((1 << 63) - 1, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_digest(f"{agreed}:{rank}") >> 1)
        yield agreed


def keyed_bits(index: Tensor, key: Tensor) -> Tensor:
    """24 random bits for each index, int64; they depend on the index (below 2**32) and the key alone.

    Two rounds of Mueller's 32-bit hash, one with each half of the key. No product exceeds int64: where
    torch.compile knows an index in advance, it computes with Python's integers, which do not wrap.
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
