from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.live import stream as stream_module
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Lane, Row
from llmkit.data.sources.records import EMPTY, REPAIRED, PromptCompletion, Skipped, Text
from llmkit.errors import RunFault, UserError
from tests.data.live.fakes import BROKEN, END, REFUSE, REFUSED, live, plain, rows_to_end

LEFT_OUT = Skipped("broken JSON", "it ends too soon")

texts = st.text("abcdefgh~", min_size=1, max_size=20)
pairs = st.builds(PromptCompletion, st.text("ab", max_size=9), st.text("cd", max_size=9)).filter(
    lambda pair: bool(pair.prompt + pair.completion)
)
candidates = st.one_of(texts, texts, pairs, st.just(LEFT_OUT), st.just(REFUSE))
sources = st.builds(
    live,
    st.lists(st.lists(candidates, max_size=12), min_size=1, max_size=6),
    lane_limit=st.integers(1, 3),
    window=st.integers(1, 6),
    sequence_length=st.integers(1, 30),
    heldout_every=st.sampled_from([0, 3]),
    max_epochs=st.integers(1, 3),
    stream_id=st.integers(0, 3),
)


def stream(source: LiveSource, lane: int) -> tuple[list[int], list[bool], Counter[str]]:
    """All tokens of a lane, which of them are targets, and what is left out, straight from the definition."""
    tokens, targets, left_out = [END], [True], Counter[str]()
    for epoch in range(source.max_epochs or 0):
        for unit in source.split_order(lane, epoch):
            records = source.reader.documents[unit]  # type: ignore[attr-defined]
            for first in range(0, len(records), source.window):
                count = min(source.window, len(records) - first)
                for place in source.window_order(count, lane, epoch, unit, first):
                    record = records[first + place]
                    if first + place in source.heldout_of(unit):
                        continue
                    if isinstance(record, Skipped) or record == Text(REFUSE):
                        left_out[record.reason if isinstance(record, Skipped) else REFUSED] += 1
                        continue
                    prompt = record.prompt if isinstance(record, PromptCompletion) else ""
                    rest = record.completion if isinstance(record, PromptCompletion) else record.text
                    left_out[REPAIRED] += "~" in rest
                    tokens += [*map(ord, prompt + rest), END]
                    targets += [False] * len(prompt) + [True] * len(rest) + [bool(rest)]
    return tokens, targets, +left_out


def as_json(rows: list[Row]) -> list[Any]:
    return json.loads(json.dumps([plain(row) for row in rows]))


@settings(deadline=None, max_examples=100)
@given(source=sources, data=st.data())
def test_the_rows_of_a_lane_are_the_stream_of_its_documents_cut(
    source: LiveSource, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, source.lanes - 1))
    tokens, targets, left_out = stream(source, number)
    rows = rows_to_end(Lane(source, number))
    length = source.sequence_length
    assert len(rows) == -(-(len(tokens) - 1) // length)
    padding = len(rows) * length + 1 - len(tokens)
    tokens, targets = tokens + [END] * padding, targets + [False] * padding
    told = Counter[str]()
    for k, row in enumerate(rows):
        assert row.tokens.dtype == np.int32
        assert row.tokens.tolist() == tokens[k * length : (k + 1) * length + 1]
        labels = targets[k * length + 1 : (k + 1) * length + 1]
        assert labels == ([True] * length if row.targets is None else row.targets.tolist())
        told += Counter(row.left_out)
    assert told <= left_out


@settings(deadline=None, max_examples=60)
@given(source=sources, data=st.data())
def test_a_lane_goes_on_after_any_row_from_its_cursor(source: LiveSource, data: st.DataObject) -> None:
    rows = rows_to_end(Lane(source, 0))
    done = data.draw(st.integers(0, len(rows)))
    if done:
        cursor = json.loads(json.dumps(rows[done - 1].cursor))
        assert as_json(rows_to_end(Lane(source, 0, cursor))) == as_json(rows[done:])


def test_every_document_comes_once_an_epoch_in_another_order_each_time() -> None:
    source = live([[f"{unit}{number:02}" for number in range(20)] for unit in range(4)], sequence_length=4)
    epochs = []
    lane = Lane(source, 1)
    for _ in range(3):
        rows = [next(lane) for _ in range(40)]
        epochs.append(["".join(map(chr, row.tokens[1:4])) for row in rows])
    expected = sorted(f"{unit}{number:02}" for unit in source.lane_splits[1] for number in range(20))
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != expected


def test_resuming_reads_one_window_and_tokenizes_one_document_again() -> None:
    documents = [[f"{unit}:{number:02}:" + "x" * 30 for number in range(32)] for unit in range(3)]

    def make() -> LiveSource:
        return live(documents, lane_limit=1, window=8)

    source = make()
    lane = Lane(source, 0)
    rows = [next(lane) for _ in range(300)]
    begun: list[str] = []
    for row, after in pairwise(rows):
        source = make()
        lane = Lane(source, 0, row.cursor)
        assert as_json([next(lane)]) == as_json([after])
        reader, encoder = source.reader, source.encoder
        epoch, place, first, _, behind, _ = row.cursor
        unit = source.split_order(0, epoch)[place]
        before = [one for one in reader.read_numbers if one[0] == unit and one[1] < first + 8]  # type: ignore[attr-defined]
        assert before == [(unit, number) for number in range(first, first + 8)]
        order = source.window_order(8, 0, epoch, unit, first)
        spent = {documents[unit][first + place] for place in order[:behind]}
        assert not spent & set(encoder.encoded)  # type: ignore[attr-defined]
        begun.append(encoder.encoded[0])  # type: ignore[attr-defined]
    assert len(set(begun)) > 50


def test_the_first_row_needs_a_part_of_the_window_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "ENCODE_CHARACTERS", 30)
    source = live([["x" * 10] * 50], window=50)
    next(Lane(source, 0))
    assert len(source.encoder.encoded) == 3  # type: ignore[attr-defined]


def test_a_window_ends_early_where_documents_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "WINDOW_CHARACTERS", 100)
    source = live([["x" * 60] * 20, ["y" * 200] * 3], lane_limit=1, window=50)
    lane = Lane(source, 0)
    seen = {tuple(next(lane).cursor[1:3]) for _ in range(150)}
    place = source.split_order(0, 0).index(0)
    assert {first for at, first in seen if at == place} >= {0, 2, 4, 6}
    assert len(source.reader.read_numbers) <= 25  # type: ignore[attr-defined]


def test_held_out_documents_are_never_in_a_row() -> None:
    source = live([[chr(100 + number) for number in range(40)]], lane_limit=1, heldout_every=10, max_epochs=1)
    tokens = {int(token) for row in rows_to_end(Lane(source, 0)) for token in row.tokens}
    assert not tokens & {100 + number for number in (9, 19, 29, 39)}
    assert len(tokens) > 30


def test_behind_its_end_a_lane_gives_rows_without_targets() -> None:
    source = live([["abcdef"] * 3, ["abc"]], max_epochs=2)
    lane = Lane(source, 0)
    rows = [next(lane) for _ in range(8)]  # 2 epochs of 3 documents of 7 tokens: 5 rows and 2 tokens
    assert [row.targets is None for row in rows] == [True] * 5 + [False] * 3
    assert rows[5].tokens.tolist() == [ord("e"), ord("f"), *[END] * 7]
    targets = [row.targets.tolist() for row in rows[5:] if row.targets is not None]
    assert targets == [[True, True, *[False] * 6], [False] * 8, [False] * 8]
    assert {tuple(row.tokens.tolist()) for row in rows[6:]} == {(END,) * 9}
    assert [row.cursor[0] for row in rows] == [0, 0, 1, 1, 1, 2, 2, 2]
    again = Lane(source, 0, rows[6].cursor)
    assert as_json([next(again)]) == as_json(rows[7:])


def test_a_lane_at_its_end_goes_on_with_the_next_epoch_where_that_is_allowed() -> None:
    ended = rows_to_end(Lane(live([["abcdef", "ghi"], ["x"]], max_epochs=1), 0))[-1]
    assert ended.cursor == [1, 0, 0, 0, 0, 0]
    more = live([["abcdef", "ghi"], ["x"]], max_epochs=2)
    got = {int(token) for row in rows_to_end(Lane(more, 0, ended.cursor)) for token in row.tokens}
    assert got == {END, *map(ord, "abcdefghi")}
    assert rows_to_end(Lane(more, 0, [4, 0, 0, 0, 1, 0])) == []


def test_a_lane_without_a_document_reads_those_of_the_others_and_goes_on_from_there() -> None:
    source = live([["abcdef"] * 5, [LEFT_OUT] * 4, ["ghij"] * 6], lane_limit=3)
    number = next(n for n in range(3) if source.lane_splits[n] == [1])
    lane = Lane(source, number)
    rows = [next(lane) for _ in range(40)]
    assert {chr(token) for row in rows for token in row.tokens if token} == set("abcdefghij")
    (note,) = (note for row in rows for note in row.notes)
    assert re.search(r"lane \d of 3 has no document .*/1\.jsonl\): it reads the whole source instead", note)
    epochs = [row.cursor[0] for row in rows]
    assert epochs == sorted(epochs) and epochs[-1] >= 2
    for done in (1, 5, 11, 25):
        again = Lane(source, number, json.loads(json.dumps(rows[done - 1].cursor)))
        assert as_json([next(again) for _ in range(10)]) == as_json(rows[done : done + 10])


def test_where_nothing_may_be_read_again_a_lane_without_a_document_is_at_its_end() -> None:
    source = live([["abcdef"] * 5, [LEFT_OUT] * 4], max_epochs=1)
    row = next(Lane(source, next(n for n in range(2) if source.lane_splits[n] == [1])))
    assert row.targets is not None
    assert (row.targets.any(), row.cursor, row.left_out) == (False, [1, 0, 0, 0, 0, 0], {"broken JSON": 4})
    assert re.search(r"has no document to train on .*/1\.jsonl", row.notes[0])


def test_a_source_without_any_document_is_the_users_mistake_on_all_lanes() -> None:
    source = live([[LEFT_OUT] * 5, [REFUSE] * 4])
    for number in range(2):
        with pytest.raises(UserError, match=r"lane \d of 2 has no document to train on"):
            next(Lane(source, number))


@pytest.mark.parametrize("documents", [[[LEFT_OUT] * 3], [[REFUSE]], [[]], [["ab"] * 2]])
def test_a_lane_without_a_document_is_the_users_mistake(documents: list[list[Any]]) -> None:
    source = live(documents, heldout_every=1 if documents == [["ab"] * 2] else 0)
    with pytest.raises(UserError, match=r"source toy: lane 0 of 1 has no document to train on .*0\.jsonl"):
        next(Lane(source, 0))


def test_a_source_of_empty_files_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"lane 0 of 1 has no document to train on \(empty files\)"):
        next(Lane(live([]), 0))


def test_what_is_left_out_is_told_with_the_row_that_follows() -> None:
    source = live([["abcdefg", LEFT_OUT, REFUSE, "a~cdefg"]], max_epochs=1, window=1)
    lane = Lane(source, 0)
    assert [next(lane).left_out for _ in range(2)] == [{}, {"broken JSON": 1, REFUSED: 1, REPAIRED: 1}]


def test_an_empty_document_is_counted() -> None:
    source = live([["", "abcdefg"]], max_epochs=1)
    assert [row.left_out for row in rows_to_end(Lane(source, 0))] in ([{EMPTY: 1}], [{}])


def test_with_errors_raise_a_refused_record_ends_the_run_with_its_place() -> None:
    source = live([["abc", REFUSE]], errors="raise", window=1)
    with pytest.raises(UserError, match=r"source toy: /files/0\.jsonl:2: it ends too soon; mend"):
        next(Lane(source, 0))


def test_a_fault_of_reading_names_the_source() -> None:
    with pytest.raises(RunFault, match=r"source toy: /files/0\.jsonl:2: cannot be read"):
        next(Lane(live([["abc", BROKEN]]), 0))


@pytest.mark.parametrize(
    "cursor", [[0, 0, 0], [0, 0, 0, 0, 0, -1], "x", {}, [0, 0, 0, 0, 0, 1.5], [0, 0, 0, 0, 0, True]]
)
def test_a_cursor_that_is_none_is_refused(cursor: Any) -> None:
    with pytest.raises(UserError, match=r"source toy: lane 0 of 1: .*cursor is not usable"):
        Lane(live([["abc"]]), 0, cursor)


@pytest.mark.parametrize(
    "cursor",
    [
        [0, 5, 0, 0, 1, 0],  # no such unit
        [0, 0, 64, 0, 1, 0],  # no such window
        [0, 0, 0, 0, 5, 0],  # the window is shorter
        [0, 0, 0, 0, 2, 1],
        [0, 0, 0, 0, 0, 4],  # the document is shorter
    ],
)
def test_a_cursor_of_other_files_is_refused(cursor: Any) -> None:
    with pytest.raises(UserError, match="cursor does not fit"):
        next(Lane(live([["abc", "def"]]), 0, cursor))


def test_a_cursor_does_not_fit_where_a_document_is_no_more() -> None:
    with pytest.raises(UserError, match="cursor does not fit"):
        next(Lane(live([[LEFT_OUT, "abc"]], window=1), 0, [0, 0, 0, 0, 0, 2]))
