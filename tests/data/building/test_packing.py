from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.data.building.packing import are_cut, plan
from llmkit.data.shards.reader import ShardReader
from llmkit.data.shards.writer import ShardWriter


def web_like(documents: int, seed: int = 0) -> np.ndarray:
    """Lengths, end-of-text included, with a median of 742 and a mean of 1200."""
    spread = np.sqrt(2 * np.log(1200 / 742))
    lengths = np.random.default_rng(seed).lognormal(np.log(742), spread, documents)
    return lengths.astype(np.int64) + 2


def cut_documents(lengths: np.ndarray, row_length: int, phase: int) -> tuple[int, int]:
    """How many documents, in this order, are cut by the ends of rows; how many of these would fit in one."""
    first = (phase - 1) % row_length + np.cumsum(lengths) - lengths
    cut = are_cut(first, lengths, row_length)
    return int(cut.sum()), int((cut & (lengths <= row_length)).sum())


def cut_by_walking(lengths: list[int], row_length: int, phase: int) -> list[int]:
    """Lengths of the documents that have inputs in two rows, found by placing input after input.

    A document's first input is the end-of-text before it, the token written last.
    """
    written = phase if phase else row_length
    cut = []
    for length in lengths:
        rows = {(place - 1) // row_length for place in range(written, written + length)}
        if len(rows) > 1:
            cut.append(length)
        written += length
    return cut


small = st.integers(2, 24).flatmap(
    lambda row_length: st.tuples(
        st.lists(st.integers(1, 2 * row_length + 3), max_size=30),
        st.just(row_length),
        st.integers(0, row_length - 1),
    )
)


@given(case=small)
@example(case=([], 8, 1))
@example(case=([8, 8, 8], 8, 1))  # each fills a row
@example(case=([8], 8, 0))  # one place is left in the row
@example(case=([4, 4, 5, 5], 9, 1))  # each the other's rest
@example(case=([4, 4, 4], 8, 1))  # a length that is its own other half
@example(case=([2, 4, 3], 8, 1))  # half of it there only once
@settings(deadline=None, max_examples=300)
def test_every_document_comes_once_and_short_ones_are_cut_last(case: tuple[list[int], int, int]) -> None:
    given_lengths, row_length, phase = case
    lengths = np.array(given_lengths, dtype=np.int64)
    order = plan(lengths, row_length, phase)
    assert sorted(order.tolist()) == list(range(len(given_lengths)))
    laid = lengths[order].tolist()
    cut = cut_by_walking(laid, row_length, phase)
    assert cut_documents(lengths[order], row_length, phase) == (
        len(cut),
        sum(length <= row_length for length in cut),
    )
    place = (phase - 1) % row_length
    for number, length in enumerate(laid):
        room = row_length - place % row_length
        if (
            room < length <= row_length
        ):  # a short one that is cut: there was neither a long one, nor one that fits
            assert all(room < later <= row_length for later in laid[number:])
        place += length


@given(case=small)
@settings(deadline=None, max_examples=100)
def test_documents_of_one_length_keep_their_order(case: tuple[list[int], int, int]) -> None:
    lengths = np.array(case[0], dtype=np.int64)
    order = plan(lengths, case[1], case[2])
    for length in set(case[0]):
        same = order[lengths[order] == length]
        assert (np.diff(same) > 0).all()


def test_few_more_are_cut_than_the_best_of_all_orders_cuts() -> None:
    random = np.random.default_rng(0)
    planned = best = written = 0
    for _ in range(60):
        row_length = int(random.integers(6, 20))
        phase = int(random.integers(0, row_length))
        lengths = random.integers(1, row_length + 5, size=6)
        planned += cut_documents(lengths[plan(lengths, row_length, phase)], row_length, phase)[1]
        written += cut_documents(lengths, row_length, phase)[1]
        best += min(cut_documents(np.array(p), row_length, phase)[1] for p in permutations(lengths.tolist()))
    assert best <= planned <= 1.5 * best
    assert planned < written / 2


def test_rows_begin_with_the_end_of_text_that_opens_their_first_document(tmp_path: Path) -> None:
    documents = [[1] * 3, [2] * 7, [3] * 2, [4] * 4, [5], [6]]
    writer = ShardWriter(tmp_path, "toy", "tok", 100, 0)
    for number in plan(np.array([len(document) + 1 for document in documents]), row_length=8, phase=1):
        writer.add(np.array(documents[number]), 0)
    writer.finish()
    rows = ShardReader(tmp_path).rows(np.arange(3), 8)
    inputs = [[0, 2, 2, 2, 2, 2, 2, 2], [0, 4, 4, 4, 4, 0, 3, 3], [0, 1, 1, 1, 0, 5, 0, 6]]
    assert rows[:, :-1].tolist() == inputs
    assert rows[:, -1].tolist() == [0, 0, 0]  # the last document's end is the last label


def test_a_plan_goes_on_where_the_one_before_ended() -> None:
    lengths, row_length, written, cut = web_like(9000), 2048, 1, 0
    laid = []
    for part in np.split(lengths, 3):
        order = plan(part, row_length, written % row_length)
        cut += cut_documents(part[order], row_length, written % row_length)[1]
        laid.append(part[order])
        written += int(part.sum())
    assert cut == cut_documents(np.concatenate(laid), row_length, 1)[1] == 0


@pytest.mark.parametrize(
    ("documents", "keep", "share"),
    [(30_000, 1 << 30, 0.0), (3_000, 1 << 30, 0.0), (30_000, 2048, 0.006), (3_000, 2048, 0.012)],
)
def test_of_documents_as_on_the_web_almost_none_that_fits_is_cut(
    documents: int, keep: int, share: float
) -> None:
    lengths, row_length = web_like(documents), 2048
    lengths = lengths[lengths <= keep]
    fitting = int((lengths <= row_length).sum())
    _, concatenated = cut_documents(lengths, row_length, 1)
    cut, planned = cut_documents(lengths[plan(lengths, row_length, 1)], row_length, 1)
    assert concatenated / fitting > 0.33
    assert planned / fitting <= share
    assert cut - planned == lengths.size - fitting  # longer than a row: cut in any order


def test_documents_that_are_all_too_long_keep_their_order() -> None:
    assert plan(np.array([30, 20, 25, 90]), 8, 3).tolist() == [0, 1, 2, 3]
