"""Counter-based initial weights: each element depends on (seed, tensor name, element index) alone.

There is no generator state, hence no order: a rank can draw any region of any tensor, and every layout
starts from the same weights, bit for bit. The hash is splitmix64 (Steele, Lea and Flood 2014), the normal
variate the inverse error function of a 24-bit uniform one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

import torch
from torch import Tensor

from llmkit.config.adapters import LORA_A, is_adapter
from llmkit.model.base import Initial, Model
from llmkit.parallel.slices import Box, Range, Shape, box_shape, box_size, check_box, full_box

_CHUNK = 1 << 17  # elements drawn at a time by a thread: the temporaries stay in its core's cache
_MASK64 = (1 << 64) - 1


class InitialWeights:
    """The initial weights of a model, read region by region like a checkpoint; nothing is kept in memory."""

    def __init__(self, model: Model, seed: int) -> None:
        self.shapes = model.full_shapes()
        self.model, self.seed = model, seed

    def names(self, kind: str) -> Collection[str]:
        """The full tensors; there are no moments."""
        return self.shapes if kind == "master" else ()

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """A region of a full tensor, fp32 on the CPU; see `Checkpoint.read`. The kind is "master"."""
        assert kind == "master", kind
        shape = self.shapes[name]
        box = full_box(shape) if box is None else box
        check_box(shape, box)
        lo, hi = (0, box_size(box)) if range is None else range
        out = torch.empty(hi - lo, dtype=torch.float32, device="cpu")
        mean, std = _of_adapter(name, shape) if is_adapter(name) else self.model.initial(name, shape)
        if std:
            normal_(out, std, stream_key(self.seed, name), shape, box, lo)
            if mean:
                out += mean
        else:
            out.fill_(mean)
        return out.view(box_shape(box)) if range is None else out

    def read_into(self, out: Tensor, name: str, kind: str, box: Box, range: Range) -> None:
        """Sets `out`, (n,) on any device, to elements `range` of a box."""
        out.copy_(self.read(name, kind, box, range))


def _of_adapter(name: str, shape: Shape) -> Initial:
    """B is 0; A has the variance of PyTorch's and PEFT's uniform one: 1 / (3 inputs)."""
    return Initial(0.0, (3 * shape[1]) ** -0.5 if name.endswith(LORA_A) else 0.0)


@torch.no_grad()
def draw(model: Model, seed: int) -> None:
    """Sets the parameters of a model to its initial weights, or to its slices of them."""
    source, slices = InitialWeights(model, seed), model.parameter_slices()
    for name, parameter in model.named_parameters():
        parameter.zero_()  # rows in no slice are padding
        for each in slices[name]:
            parameter[each.start : each.stop] = source.read(each.name, "master", each.box)
    for name, buffer in model.full_buffers().items():
        buffer.copy_(source.read(name, "master"))
    model.has_weights = True


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
    """64-bit key of one tensor's stream of values, as int64 holds it."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return _signed(int.from_bytes(digest, "little"))


@torch.no_grad()
def normal_(out: Tensor, std: float, key: int, shape: Shape, box: Box, start: int = 0) -> None:
    """Fills a flat fp32 `out` with elements start.. of a box of the normal tensor of this key and shape.

    Values lie within 5.5 standard deviations: 24-bit uniforms have no further tail.
    """
    chunk = _CHUNK * min(torch.get_num_threads(), 32)
    for low in range(0, out.numel(), chunk):
        high = min(low + chunk, out.numel())
        index = _index(start + low, start + high, shape, box)
        bits = (_mix64(index * _signed(0x9E3779B97F4A7C15) + key) >> 40) & 0xFFFFFF
        odd = bits.mul_(2).add_(1 - (1 << 24))
        torch.erfinv(odd.float().mul_(2.0**-24), out=out[low:high])  # exact in fp32, never 0
    out.mul_(math.sqrt(2.0) * std)


def _index(low: int, high: int, shape: Shape, box: Box) -> Tensor:
    """Where in the full tensor, flat, the elements low .. high - 1 of a box lie."""
    if box[1:] == full_box(shape[1:]):
        first = box[0][0] * math.prod(shape[1:])
        return torch.arange(first + low, first + high, dtype=torch.int64, device="cpu")
    position = torch.arange(low, high, dtype=torch.int64, device="cpu")
    index, stride = torch.zeros_like(position), 1
    for size, (lo, hi) in zip(reversed(shape), reversed(box), strict=True):
        index += (position % (hi - lo) + lo) * stride
        position = position // (hi - lo)
        stride *= size
    return index
