"""The file that holds the index of a checkpoint, `index.safetensors`: a safetensors file of

    boxes, pieces  the arrays of `index.Index`, int64
    checksums      (blocks,) xxh64 of every block of the files with pieces, one file after the other, as int64
    files          (bytes,) JSON: name and size of each of these files
    tensors        (bytes,) JSON: kind, name, shape and dtype of each tensor

Ranks send what they have written to rank 0 in the same form.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from llmkit.checkpoint.files import StoredFile
from llmkit.checkpoint.format import BLOCK, Count, DtypeName, FileName, Kind, TensorName, first_error
from llmkit.checkpoint.index import Array, Index, TensorEntry
from llmkit.checkpoint.safetensors_header import TensorSpan, decode_header, encode_header

MAX_ELEMENTS = 2**53


def encode(index: Index) -> bytes:
    """The content of the file."""
    checksums = np.concatenate([np.zeros(0, np.uint64), *(file.checksums for file in index.files)])
    arrays: dict[str, NDArray[Any]] = {
        "boxes": index.boxes,
        "pieces": index.pieces,
        "checksums": checksums.view(np.int64),
        "files": _text(_FILES.dump_json([(file.name, file.size) for file in index.files])),
        "tensors": _text(_TENSORS.dump_json(list(index.tensors))),
    }
    spans: dict[str, TensorSpan] = {}
    offset = 0
    for key, array in arrays.items():
        dtype = "I64" if array.dtype == np.int64 else "U8"
        spans[key] = TensorSpan(dtype, array.shape, offset, offset := offset + array.nbytes)
    return b"".join([encode_header(spans), *(array.tobytes() for array in arrays.values())])


def decode(raw: bytes) -> Index:
    """The index that `encode` wrote; ValueError (one line) for any other bytes."""
    spans = decode_header(len(raw), lambda lo, hi: raw[lo:hi])
    if sorted(spans) != ["boxes", "checksums", "files", "pieces", "tensors"]:
        raise ValueError(f"it holds {', '.join(sorted(spans)) or 'nothing'}")
    text = {key: raw[spans[key].start : spans[key].stop] for key in ("files", "tensors")}
    tensors = _tensors(text["tensors"])
    columns = {"boxes": 1 + 2 * max((len(tensor.shape) for tensor in tensors), default=0), "pieces": 4}
    boxes, pieces = (_integers(raw, spans[key]).reshape(-1, width) for key, width in columns.items())
    checksums = _integers(raw, spans["checksums"]).view(np.uint64)
    index = Index(tensors, _files(text["files"], checksums), boxes, pieces)
    _check_boxes(index)
    _check_pieces(index)
    return index


def _check_boxes(index: Index) -> None:
    """Raise ValueError unless every box is a part of its tensor, and they are in order."""
    boxes = index.boxes
    number = boxes[:, 0]
    if len(boxes) and (number.min() < 0 or number.max() >= len(index.tensors) or (np.diff(number) < 0).any()):
        raise ValueError("boxes: of no tensor, or not in the order of the tensors")
    width = (boxes.shape[1] - 1) // 2
    shapes = np.array([(*t.shape, *[0] * (width - len(t.shape))) for t in index.tensors], np.int64)
    limits = shapes.reshape(len(index.tensors), width)[number]
    lo, hi = boxes[:, 1::2], boxes[:, 2::2]
    if not ((lo >= 0) & (lo <= hi) & (hi <= limits)).all():
        raise ValueError("boxes: one does not lie inside its tensor")


def _check_pieces(index: Index) -> None:
    """Raise ValueError unless every piece is some elements of a box, in a file, and they are in order."""
    box, file, lo, hi = index.pieces.T
    for what, values, count in (("box", box, len(index.boxes)), ("file", file, len(index.files))):
        if len(values) and (values.min() < 0 or values.max() >= count):
            raise ValueError(f"pieces: one is of a {what} that is not there")
    if not ((lo >= 0) & (lo < hi) & (hi <= index.box_sizes[box])).all():
        raise ValueError("pieces: one does not lie inside its box")
    if (np.diff(box) < 0).any():
        raise ValueError("pieces: not in the order of the boxes")


def _integers(raw: bytes, span: TensorSpan) -> Array:
    if span.dtype != "I64":
        raise ValueError(f"integers of type {span.dtype}")
    return np.frombuffer(raw, "<i8", (span.stop - span.start) // 8, span.start)


def _text(raw: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(raw, np.uint8)


@lru_cache(maxsize=4)
def _tensors(raw: bytes) -> tuple[TensorEntry, ...]:
    """The tensors of an index; many ranks give the same text."""
    tensors = tuple(TensorEntry(*entry) for entry in _parsed(_TENSORS, raw))
    if len({(tensor.kind, tensor.name) for tensor in tensors}) < len(tensors):
        raise ValueError("tensors: one is listed twice")
    if any(prod(tensor.shape) > MAX_ELEMENTS for tensor in tensors):
        raise ValueError(f"tensors: one has more than {MAX_ELEMENTS} elements")
    return tensors


def _files(raw: bytes, checksums: NDArray[np.uint64]) -> tuple[StoredFile, ...]:
    """The files of an index, each with its checksums."""
    files: list[StoredFile] = []
    first = 0
    for name, size in _parsed(_FILES, raw):
        files.append(StoredFile(name, size, checksums[first : (first := first - (-size // BLOCK))]))
    if first != len(checksums):
        raise ValueError(f"files: {first} blocks, but {len(checksums)} checksums")
    return tuple(files)


_Parsed = TypeVar("_Parsed")


def _parsed(adapter: TypeAdapter[_Parsed], raw: bytes) -> _Parsed:
    try:
        return adapter.validate_json(raw, strict=True)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None


_TENSORS: TypeAdapter[list[Any]] = TypeAdapter(list[tuple[Kind, TensorName, tuple[Count, ...], DtypeName]])
_FILES: TypeAdapter[list[Any]] = TypeAdapter(list[tuple[FileName, Count]])
