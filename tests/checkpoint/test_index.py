"""The index: merged, stored and searched without losing a piece, and strict about what it is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.checkpoint import index_file
from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.files import StoredFile
from llmkit.checkpoint.index import Index, PieceEntry, TensorEntry, build_index, merge
from llmkit.checkpoint.pieces import intersect, runs
from llmkit.parallel.slices import Shape
from tests.checkpoint.cuttings import cuttings

NAME = "index.safetensors"


def listed(found: Index) -> set[tuple[PieceEntry, str]]:
    """All pieces with the names of their files."""
    entries = [found.entry(number) for number in range(len(found.pieces))]
    return {(entry._replace(file=0), found.files[entry.file].name) for entry in entries}


def stored(found: Index) -> Index:
    """What is read of an index that was written."""
    return index_file.decode(index_file.encode(found))


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
    found = index_file.decode(
        index_file.encode(merge([index_file.decode(index_file.encode(part)) for part in parts]))
    )
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

    def part(rank: int, *left_out: TensorEntry) -> Index:
        within = (cuts[rank], cuts[rank + 1])
        given = [PieceEntry(tensor, ((0, size),), within) for tensor in tensors if tensor not in left_out]
        file = StoredFile(f"pieces-{rank}", 5, np.zeros(1, np.uint64))
        return build_index(given, [file])

    parts = [stored(part(rank)) for rank in range(ranks)]
    found = merge(parts)
    check_complete(found)
    assert len(found.pieces) == 90 * ranks and len(index_file.encode(found)) < 50 * len(found.pieces)
    assert [piece.file for piece in found.in_file(300)] == [300] * 90
    parts[300] = stored(part(300, tensors[70]))
    with pytest.raises(ValueError, match=f"master w70: elements {cuts[300]} to {cuts[301]} of"):
        check_complete(merge(parts))
