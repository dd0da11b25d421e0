from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.data.live.lane import Lane
from llmkit.data.live.row import Row
from llmkit.data.live.source import LiveSource
from llmkit.data.sources.records import LeftOut, Pair
from tests.data.live.fakes import REFUSE, live, plain, rows_to_end

candidates = st.one_of(
    st.text("abcdefgh~\U0001f600", min_size=1, max_size=20),
    st.builds(Pair, st.text("ab", min_size=1, max_size=9), st.text("cd", max_size=9)),
    st.just(LeftOut("broken JSON", "it ends too soon")),
    st.just(REFUSE),
)
documents = st.lists(st.lists(candidates, max_size=12), min_size=1, max_size=5)


@contextmanager
def kept(source: LiveSource) -> Iterator[LiveSource]:
    """The same source, which keeps its tokens."""
    folder = tempfile.mkdtemp()
    try:
        yield dataclasses.replace(source, cache_dir=folder)
    finally:
        shutil.rmtree(folder)


def fresh(source: LiveSource) -> LiveSource:
    """The same source as another process has it: nothing read so far."""
    return dataclasses.replace(source, reader=dataclasses.replace(source.reader, read_numbers=[]))  # type: ignore[type-var]


def rows_of(source: LiveSource, cursor: Any = None) -> list[Row]:
    with closing(Lane(source, 0, cursor)) as lane:
        return rows_to_end(lane)


def without_notes(rows: list[Row]) -> list[Any]:
    return [plain(row)[:4] for row in rows]


def read_of(source: LiveSource) -> list[tuple[int, int]]:
    return source.reader.read_numbers  # type: ignore[attr-defined]


def files_of(source: LiveSource) -> list[Path]:
    assert source.cache_folder is not None
    return sorted(source.cache_folder.iterdir())


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    documents=documents,
    window=st.integers(1, 6),
    heldout_every=st.sampled_from([0, 3]),
    data=st.data(),
)
def test_rows_from_kept_tokens_are_the_same(
    documents: list[list[Any]], window: int, heldout_every: int, data: st.DataObject
) -> None:
    plainly = live(documents, lane_limit=1, window=window, heldout_every=heldout_every, max_epochs=3)
    rows = without_notes(rows_of(plainly))
    with kept(plainly) as source:
        assert without_notes(rows_of(source)) == rows  # kept in the first epoch, used in the others
        again = fresh(source)
        assert without_notes(rows_of(again)) == rows
        if rows:
            assert read_of(again) == []
            done = data.draw(st.integers(1, len(rows)))
            assert without_notes(rows_of(again, rows[done - 1][2])) == rows[done:]
            assert without_notes(rows_of(plainly, rows[done - 1][2])) == rows[done:]
            assert read_of(again) == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_told_and_made_again(data: st.DataObject) -> None:
    documents = [[f"{unit}{number}" * 3 for number in range(9)] for unit in range(2)]
    plainly = live(documents, lane_limit=1, max_epochs=2)
    rows = without_notes(rows_of(plainly))
    with kept(plainly) as source:
        rows_of(source)
        whole = {path: path.read_bytes() for path in files_of(source)}
        path = data.draw(st.sampled_from(sorted(whole)))
        content = bytearray(whole[path])
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        path.write_bytes(content)
        found = rows_of(fresh(source))
        assert without_notes(found) == rows
        notes = [note for row in found for note in row.notes]
        assert len(notes) == 1
        assert notes[0].startswith(f"source toy: {path} is damaged")
        again = fresh(source)
        assert without_notes(rows_of(again)) == rows
        assert read_of(again) == []
        assert {path: path.stat().st_size for path in files_of(source)} == {p: len(whole[p]) for p in whole}


def test_only_a_unit_that_was_read_in_one_go_is_kept(tmp_path: Path) -> None:
    source = live([["abcdefg"] * 9, ["hijklmn"] * 9], lane_limit=1, cache_dir=str(tmp_path))
    lane = Lane(source, 0)
    cursors = [lane.next_row().cursor for _ in range(5)]
    lane.close()
    assert files_of(source) == []
    lane = Lane(source, 0, cursors[-1])
    for _ in range(14):
        lane.next_row()
    second = source.unit_order(0, 0)[1]
    assert [path.name for path in files_of(source)] == [f"unit-{second:06d}.tokens"]
    lane.close()


def test_several_may_write_the_same_file(tmp_path: Path) -> None:
    source = live([["abcdefg"] * 9], lane_limit=1, cache_dir=str(tmp_path))
    lanes = [Lane(source, 0) for _ in range(3)]
    for _ in range(12):
        first, *others = [lane.next_row() for lane in lanes]
        assert without_notes([first]) * 2 == without_notes(others)
    assert len(files_of(source)) == 1


def test_where_nothing_can_be_written_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = live([["abcdefg"] * 9], lane_limit=1, max_epochs=3, cache_dir=str(tmp_path / "file"))
    rows = rows_of(source)
    assert without_notes(rows) == without_notes(rows_of(dataclasses.replace(source, cache_dir=None)))
    assert [note for row in rows for note in row.notes] == [
        f"source toy: tokens are not kept: {source.cache_folder} cannot be written (Not a directory)"
    ]


def test_what_a_dead_process_left_is_removed_after_days(tmp_path: Path) -> None:
    source = live([["abcdefg"] * 9], lane_limit=1, cache_dir=str(tmp_path))
    assert source.cache_folder is not None
    source.cache_folder.mkdir()
    old, new = (source.cache_folder / f".unit-000000-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    lane = Lane(source, 0)
    for _ in range(12):
        lane.next_row()
    lane.close()
    assert [path.name for path in files_of(source)] == [new.name, "unit-000000.tokens"]


def test_a_file_that_another_process_finishes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = live([["abcdefg"] * 9], lane_limit=1, cache_dir=str(tmp_path))
    gone, glob = ".unit-000000-renamed", Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / gone, *glob(self, pattern)])
    lane = Lane(source, 0)
    notes = [note for _ in range(12) for note in lane.next_row().notes]
    lane.close()
    assert (notes, [path.name for path in files_of(source)]) == ([], ["unit-000000.tokens"])
