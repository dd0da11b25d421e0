"""The index: merged, stored and searched without losing a piece, and strict about what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.checkpoint import index, read
from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.files import StoredFile, TensorPlace, encode_header
from llmkit.checkpoint.format import Damaged
from llmkit.checkpoint.index import BOX, FILE, HI, LO, Index, PieceEntry, TensorEntry, build_index, merge
from llmkit.checkpoint.pieces import intersect, runs
from llmkit.parallel.slices import Shape
from tests.checkpoint.cuttings import cuttings
from tests.checkpoint.forging import forge_file

NAME = "index.safetensors"


def listed(found: Index) -> set[tuple[PieceEntry, str]]:
    """All pieces with the names of their files."""
    entries = [found.entry(number) for number in range(len(found.pieces))]
    return {(entry._replace(file=0), found.files[entry.file].name) for entry in entries}


@st.composite
def pieces_of_ranks(draw: st.DrawFn) -> list[list[PieceEntry]]:
    """The pieces of three ranks: tensors of several shapes, a scalar among them."""
    ranks: list[list[PieceEntry]] = [[], [], []]
    shapes: list[Shape] = draw(
        st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=3)
    )
    for number, shape in enumerate(shapes):
        tensor = TensorEntry("master", f"w{number}", shape, "F32")
        for box, part in draw(cuttings(shape)) if shape else [((), (0, 1))]:
            if part[0] < part[1]:
                ranks[draw(st.integers(0, 2))].append(PieceEntry(tensor, box, part))
    return ranks


@given(ranks=pieces_of_ranks(), data=st.data())
def test_what_ranks_give_is_all_there_after_merging_and_storing(
    ranks: list[list[PieceEntry]], data: st.DataObject
) -> None:
    checksums = np.array([2**64 - 1], np.uint64)
    files = [StoredFile(f"pieces-{rank}", rank + 1, checksums) for rank in range(3)]
    parts = [build_index(pieces, [file]) for pieces, file in zip(ranks, files, strict=True)]
    found = index.decode(merge([index.decode(part.encode()) for part in parts]).encode())
    assert listed(found) == {(piece, files[rank].name) for rank in range(3) for piece in ranks[rank]}
    assert [file.size for file in found.files] == [1, 2, 3]
    assert all(file.checksums.tolist() == [2**64 - 1] for file in found.files)
    for number, file in enumerate(found.files):
        assert {piece.key for piece in found.in_file(number)} == {p.key for p in ranks[int(file.name[-1])]}
    wanted = data.draw(st.sampled_from([piece for pieces in ranks for piece in pieces]))
    targets = list(runs(wanted.box, wanted.range))
    needed = {
        piece.key
        for pieces in ranks
        for piece in pieces
        if piece.tensor == wanted.tensor
        and any(intersect(a.box, b.box) is not None for a in targets for b in runs(piece.box, piece.range))
    }
    number = found.numbers["master", wanted.tensor.name]
    holding = {piece.key for piece in found.holding(number, targets)}
    assert needed <= holding
    if all(piece.box == wanted.box for pieces in ranks for piece in pieces if piece.tensor == wanted.tensor):
        assert holding == {wanted.key}, "where nothing is cut otherwise, nothing else is looked at"


def test_tensors_that_differ_between_ranks_are_refused() -> None:
    parts = [
        build_index([PieceEntry(TensorEntry("m", "w", (2,), dtype), ((0, 2),), (0, 1))])
        for dtype in ("F32", "BF16")
    ]
    with pytest.raises(ValueError, match="pieces of m w differ in shape or dtype"):
        merge(parts)


def test_hundreds_of_ranks_are_checked_as_a_whole() -> None:
    ranks, size = 512, 10_000
    cuts = [size * rank // ranks for rank in range(ranks + 1)]
    tensors = [TensorEntry("master", f"w{number}", (size,), "F32") for number in range(90)]

    def part(rank: int, *left_out: TensorEntry) -> bytes:
        within = (cuts[rank], cuts[rank + 1])
        given = [PieceEntry(tensor, ((0, size),), within) for tensor in tensors if tensor not in left_out]
        file = StoredFile(f"pieces-{rank}", 5, np.zeros(1, np.uint64))
        return build_index(given, [file]).encode()

    parts = [index.decode(part(rank)) for rank in range(ranks)]
    found = merge(parts)
    check_complete(found)
    assert len(found.pieces) == 90 * ranks and len(found.encode()) < 50 * len(found.pieces)
    assert [piece.file for piece in found.in_file(300)] == [300] * 90
    parts[300] = index.decode(part(300, tensors[70]))
    with pytest.raises(ValueError, match=f"master w70: elements {cuts[300]} to {cuts[301]} of"):
        check_complete(merge(parts))


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


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_index_is_refused_in_one_line(save_step: Any, change: Callable[[Index], Index]) -> None:
    folder = save_step(1)
    forge_file(folder, NAME, change(index.decode((folder / NAME).read_bytes())).encode())
    (problem,) = read.verify(folder)
    assert problem.startswith(str(folder)) and "\n" not in problem


def without(array: str) -> bytes:
    """An index file that lacks an array."""
    raw = build_index([]).encode()
    return raw.replace(array.encode(), b"x" * len(array))


BYTES = {
    "nothing": b"",
    "a header alone": encode_header({}),
    "no pieces": without("pieces"),
    "no tensors": without("tensors"),
    "numbers that are text": build_index([]).encode().replace(b'"I64"', b'"F64"'),
    "deep text": encode_header({"x": TensorPlace("U8", (0,), 0, 0)}).replace(b"U8", b"[["),
}


@pytest.mark.parametrize("raw", BYTES.values(), ids=BYTES)
def test_what_is_no_index_is_refused_in_one_line(tmp_path: Path, save_step: Any, raw: bytes) -> None:
    folder = save_step(1)
    forge_file(folder, NAME, raw)
    (problem,) = read.verify(folder)
    assert problem.startswith(str(folder / NAME)) and "\n" not in problem
    with pytest.raises(Damaged, match=NAME):
        read.load(folder)
