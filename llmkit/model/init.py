"""Initial weights by counter: each element depends on (seed, tensor name, element index) alone.

No generator state, hence no order: a process can draw any part of any tensor, and every layout
starts from the same weights (bit-equal on one type of device). The hash is splitmix64 (Steele, Lea
and Flood 2014), the normal variate the inverse error function of a 24-bit uniform one.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_CHUNK = 1 << 20  # elements drawn at a time: bounds the temporaries to a few tens of MiB
_MASK64 = (1 << 64) - 1


def _signed(word: int) -> int:
    """The 64-bit pattern of `word` as torch's int64 holds it."""
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word


def _mix64(z: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 tensors; products wrap, right shifts are made logical."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def stream_key(seed: int, name: str) -> int:
    """64-bit key of one tensor's stream of values."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@torch.no_grad()
def normal_(out: Tensor, std: float, *, seed: int, name: str, start: int = 0) -> None:
    """Fills a contiguous fp32 `out` with elements start.. of the normal stream of tensor `name`.

    Values lie within 5.5 standard deviations: 24-bit uniforms have no further tail.
    """
    flat, key = out.view(-1), stream_key(seed, name)
    for low in range(0, flat.numel(), _CHUNK):
        high = min(low + _CHUNK, flat.numel())
        index = torch.arange(start + low, start + high, dtype=torch.int64, device=flat.device)
        bits = _mix64(index * _signed(0x9E3779B97F4A7C15) + _signed(key))
        odd = (((bits >> 40) & 0xFFFFFF) * 2 + 1 - (1 << 24)).float()  # exact in fp32, never 0
        flat[low:high] = torch.erfinv(odd * 2.0**-24) * (math.sqrt(2.0) * std)
