"""What many processes give must be whole tensors, each element once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.index import PieceEntry, TensorEntry, build_index
from llmkit.parallel.slices import Box, Range, Shape, full_box
from tests.checkpoint.cuttings import cuttings


def entry(shape: Shape, box: Box, part: Range, kind: str = "master") -> PieceEntry:
    return PieceEntry(TensorEntry(kind, "w", shape, "F32"), box, part)


def check(pieces: list[PieceEntry]) -> None:
    check_complete(build_index(pieces))


@st.composite
def cut_tensors(draw: st.DrawFn) -> list[PieceEntry]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    return [entry(shape, box, part) for box, part in draw(cuttings(shape))]


@given(pieces=cut_tensors(), data=st.data())
def test_every_cutting_is_whole_and_nothing_less_or_more_is(
    pieces: list[PieceEntry], data: st.DataObject
) -> None:
    check(pieces)
    chosen = data.draw(st.sampled_from(pieces))
    with pytest.raises(ValueError, match=r"master w: .* given twice"):
        check([*pieces, chosen])
    if len(pieces) > 1:
        with pytest.raises(ValueError, match=r"master w: .* missing"):
            check([piece for piece in pieces if piece is not chosen])


BOX = full_box((4, 6))
WRONG: dict[str, tuple[list[tuple[Box, Range]], str]] = {
    "ranges that overlap": ([(BOX, (0, 13)), (BOX, (12, 24))], r"element 12 of \[0:4, 0:6\] is given twice"),
    "a range in another": ([(BOX, (0, 24)), (BOX, (3, 5))], r"element 3 of \[0:4, 0:6\] is given twice"),
    "a hole": ([(BOX, (0, 11)), (BOX, (12, 24))], r"elements 11 to 12 of \[0:4, 0:6\] are missing"),
    "no start": ([(BOX, (1, 24))], r"elements 0 to 1 of"),
    "no end": ([(BOX, (0, 23))], r"elements 23 to 24 of"),
    "boxes that overlap": (
        [(((0, 4), (0, 4)), (0, 16)), (((0, 4), (3, 6)), (0, 12))],
        r"\[0:4, 3:4\] is given twice",
    ),
    "boxes with a gap": (
        [(((0, 4), (0, 3)), (0, 12)), (((0, 4), (4, 6)), (0, 8))],
        r"\[0:4, 3:4\] is missing",
    ),
}


@pytest.mark.parametrize(("cuts", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(cuts: list[tuple[Box, Range]], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^exp_avg w: {message}"):
        check([entry((4, 6), box, part, "exp_avg") for box, part in cuts])


def test_kinds_are_tensors_of_their_own() -> None:
    pieces = [
        entry((4, 6), BOX, (0, 24)),
        entry((4, 6), BOX, (0, 24), "exp_avg"),
        entry((), (), (0, 1), "s"),
    ]
    check(pieces)
