"""Weights written as safetensors files of Hugging Face's format, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.checkpoint.files import tensor_bytes, write_file
from llmkit.checkpoint.format import DTYPE_NAMES
from llmkit.checkpoint.safetensors_header import TensorSpan, encode_header
from llmkit.hf.architectures import filling
from llmkit.hf.names import Stored
from llmkit.hf.tensor_files import INDEX, SINGLE
from llmkit.parallel.slices import full_box
from llmkit.weights import Weights


class Planned(NamedTuple):
    """A tensor to be written, and the type it will have."""

    stored: Stored
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.stored.shape) * self.dtype.itemsize


def plan(weights: Weights, stored: Sequence[Stored], dtype: torch.dtype | None) -> list[Planned]:
    """All tensors with their types: `dtype`, or the one in which each is stored.

    One that the weights lack has the type of the first, and is `filling`.
    """

    known = weights.names()

    def kept(tensor: Stored) -> torch.dtype:
        name, shape = tensor.parts[0] if tensor.parts[0][0] in known else stored[0].parts[0]
        return weights.read(name, tuple((0, 1) for _ in shape)).dtype

    return [Planned(each, dtype or kept(each)) for each in stored]


def split(tensors: Sequence[Planned], most: int) -> list[list[Planned]]:
    """Consecutive tensors of at most `most` bytes together; a larger one alone."""
    shards: list[list[Planned]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = most
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def write_shards(folder: Path, weights: Weights, shards: Sequence[Sequence[Planned]]) -> None:
    """Writes `model.safetensors`, or numbered files and their index, as `save_pretrained` names them."""
    if len(shards) == 1:
        _write(folder / SINGLE, weights, shards[0])
        return
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, weights, shard)
        files |= dict.fromkeys((tensor.stored.name for tensor in shard), name)
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    write_file(folder / INDEX, [memoryview(json.dumps(index, indent=2).encode() + b"\n")])


def _write(path: Path, weights: Weights, shard: Sequence[Planned]) -> None:
    tensors = sorted(shard, key=lambda tensor: -tensor.dtype.itemsize)  # keeps each aligned, without holes
    spans: dict[str, TensorSpan] = {}
    offset = 0
    for stored, dtype in tensors:
        stop = offset + prod(stored.shape) * dtype.itemsize
        spans[stored.name] = TensorSpan(DTYPE_NAMES[dtype], stored.shape, offset, stop)
        offset = stop

    def chunks() -> Iterator[memoryview]:
        yield memoryview(encode_header(spans))
        for tensor in tensors:
            yield tensor_bytes(_read(weights, tensor).view(-1))

    write_file(path, chunks())


def _read(weights: Weights, tensor: Planned) -> Tensor:
    """A tensor as it is to be stored, contiguous."""
    known = weights.names()
    parts = [
        weights.read(name, full_box(shape)).to(tensor.dtype)
        if name in known
        else torch.full(shape, filling(name), dtype=tensor.dtype)
        for name, shape in tensor.stored.parts
    ]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (whole.t() if tensor.stored.transposed else whole).contiguous()
