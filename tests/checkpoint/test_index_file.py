"""The stored index: strict about everything, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.checkpoint import index_file, read
from llmkit.checkpoint.format import Damaged
from llmkit.checkpoint.index import BOX, FILE, HI, LO, Index, build_index
from llmkit.checkpoint.safetensors_header import TensorSpan, encode_header
from tests.checkpoint.forging import forge_file

NAME = "index.safetensors"


def set_column(rows: str, row: int, column: int, value: int) -> Callable[[Index], Index]:
    """A change of one number in `boxes` or `pieces`."""

    def change(found: Index) -> Index:
        array = getattr(found, rows).copy()
        array[row, column] = value
        return replace(found, **{rows: array})

    return change


def set_tensor(**fields: Any) -> Callable[[Index], Index]:
    return lambda found: replace(found, tensors=(found.tensors[0]._replace(**fields), *found.tensors[1:]))


def set_file(**fields: Any) -> Callable[[Index], Index]:
    return lambda found: replace(found, files=(found.files[0]._replace(**fields), *found.files[1:]))


HOSTILE: dict[str, Callable[[Index], Index]] = {
    "parent file": set_file(name="../secret"),
    "absolute file": set_file(name="/etc/hostname"),
    "hidden file": set_file(name=".x"),
    "the manifest": set_file(name="manifest.json"),
    "a file of the manifest": set_file(name="tokenizer.json"),
    "a file twice": lambda found: replace(found, files=found.files * 2),
    "no file": lambda found: replace(found, files=()),
    "a negative size": set_file(size=-1),
    "a huge size": set_file(size=10**30),
    "a size without checksums": set_file(size=10**15),
    "too many checksums": set_file(checksums=np.zeros(3, np.uint64)),
    "a wrong checksum": set_file(checksums=np.zeros(1, np.uint64)),
    "a name with a slash": set_tensor(name="../w"),
    "another kind": set_tensor(kind="Master"),
    "another name": set_tensor(name="other"),
    "another type": set_tensor(dtype="I32"),
    "an unknown type": set_tensor(dtype="object"),
    "a huge shape": set_tensor(shape=(10**40, 16)),
    "a shape of too many elements": set_tensor(shape=(2**40, 2**40)),
    "a tensor twice": lambda found: replace(found, tensors=(*found.tensors, found.tensors[0])),
    "too many dimensions": set_tensor(shape=(50, 16, 1, 1)),
    "a box outside the shape": set_column("boxes", 0, 2, 51),
    "a negative box": set_column("boxes", 0, 1, -1),
    "a box turned around": set_column("boxes", 0, 1, 51),
    "a box in more dimensions than the tensor": set_column("boxes", 0, 6, 1),
    "a box of no tensor": set_column("boxes", -1, 0, 99),
    "a box of a negative tensor": set_column("boxes", 0, 0, -1),
    "boxes in another order": lambda found: replace(found, boxes=found.boxes[::-1].copy()),
    "a range outside the box": set_column("pieces", 0, HI, 801),
    "a negative range": set_column("pieces", 0, LO, -1),
    "an empty range": set_column("pieces", 0, LO, 800),
    "a piece of no box": set_column("pieces", -1, BOX, 99),
    "a piece of a negative box": set_column("pieces", 0, BOX, -1),
    "a piece in no file": set_column("pieces", 0, FILE, 1),
    "a piece in a negative file": set_column("pieces", 0, FILE, -1),
    "pieces in another order": lambda found: replace(found, pieces=found.pieces[::-1].copy()),
}


@pytest.mark.drill(
    "D37", injection=f"{len(HOSTILE)} hostile indexes: ../secret, boxes beyond tensors", expected="refused"
)
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_index_is_refused_in_one_line(save_step: Any, change: Callable[[Index], Index]) -> None:
    folder = save_step(1)
    found = index_file.decode((folder / NAME).read_bytes())
    forge_file(folder, NAME, index_file.encode(change(found)))
    (problem,) = read.verify(folder)
    assert problem.startswith(str(folder)) and "\n" not in problem


def without(array: str) -> bytes:
    """An index file that lacks an array."""
    raw = index_file.encode(build_index([]))
    return raw.replace(array.encode(), b"x" * len(array))


BYTES = {
    "nothing": b"",
    "a header alone": encode_header({}),
    "a header longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "a header longer than any": b"\xff" * 16,
    "no pieces": without("pieces"),
    "no tensors": without("tensors"),
    "numbers that are text": index_file.encode(build_index([])).replace(b'"I64"', b'"F64"'),
    "deep text": encode_header({"x": TensorSpan("U8", (0,), 0, 0)}).replace(b"U8", b"[["),
}


@pytest.mark.parametrize("raw", BYTES.values(), ids=BYTES)
def test_what_is_no_index_is_refused_in_one_line(tmp_path: Path, save_step: Any, raw: bytes) -> None:
    folder = save_step(1)
    forge_file(folder, NAME, raw)
    (problem,) = read.verify(folder)
    assert problem.startswith(str(folder / NAME)) and "\n" not in problem
    with pytest.raises(Damaged, match=NAME):
        read.load(folder)
