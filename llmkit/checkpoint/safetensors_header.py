"""The header of a safetensors file: which tensors it holds, and where.

Format: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

from llmkit.checkpoint.format import DTYPES
from llmkit.parallel.slices import Shape

MAX_HEADER = 10**8


class TensorSpan(NamedTuple):
    """A tensor in a safetensors file: bytes [start, stop) of its data, or of the file once read."""

    dtype: str
    shape: Shape
    start: int
    stop: int


def encode_header(tensors: Mapping[str, TensorSpan]) -> bytes:
    """What comes before the data of a safetensors file; spans count from the start of the data."""
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    for key, (dtype, shape, start, stop) in tensors.items():
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def decode_header(size: int, read: Callable[[int, int], bytes]) -> dict[str, TensorSpan]:
    """The tensors of a safetensors file; spans count from the start of the file.

    size: of the file in bytes. read(lo, hi): checked bytes of the file. Raises ValueError.
    """
    try:
        length = int.from_bytes(read(0, min(8, size)), "little")
        data = 8 + length
        if data > size or length > MAX_HEADER:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        spans = {}
        for key, entry in json.loads(read(8, data)).items():
            if key == "__metadata__":
                continue
            start, stop = (data + operator.index(offset) for offset in entry["data_offsets"])
            itemsize = DTYPES[entry["dtype"]].itemsize
            if not data <= start <= stop <= size or start % itemsize or (stop - start) % itemsize:
                raise ValueError(f"{key} does not lie inside the file")
            spans[key] = TensorSpan(entry["dtype"], tuple(entry["shape"]), start, stop)
        return spans
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a safetensors file as llmkit writes it: {error!r}") from error
