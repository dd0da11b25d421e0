from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from llmkit.data.sources.records import Chat, Ids, Skipped, Text
from llmkit.errors import UserError
from tests.data.sources.conftest import make_reader, read_all
from tests.data.sources.tables_for_tests import TABLES, as_source, texts, write_table

BYTES = [b"good", b"caf\xe9", None, b"more"]
NO_NULL = [b"good", b"caf\xe9", b"more"]


def unchecked(kind: pa.DataType, values: Sequence[bytes | None] = BYTES) -> pa.Array:
    """A text column with a value that is no UTF-8."""
    raw = pa.array(values, pa.large_binary() if kind == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(kind, len(raw), raw.buffers())


def encoded(values: pa.Array, indices: list[int | None]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int16()), values)


COLUMNS: dict[str, Callable[[], pa.Array]] = {
    "string": lambda: unchecked(pa.string()),
    "large_string": lambda: unchecked(pa.large_string()),
    "string_view": lambda: pa.array(BYTES, pa.binary_view()).view(pa.string_view()),
    "dictionary": lambda: encoded(unchecked(pa.string(), NO_NULL), [0, 1, None, 2]),
    "dictionary of large_string": lambda: encoded(unchecked(pa.large_string(), NO_NULL), [0, 1, None, 2]),
    "extension": lambda: pa.ExtensionArray.from_storage(pa.json_(pa.string()), unchecked(pa.string())),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("kind", COLUMNS)
def test_what_is_no_utf8_is_one_bad_row_whatever_the_type_of_the_column(
    tmp_path: Path, name: str, kind: str
) -> None:
    if "view" in kind and name.endswith(".parquet"):
        pytest.skip("parquet has no views")
    path = write_table(tmp_path / name, pa.table({"text": COLUMNS[kind]()}), 3)
    null = Skipped("no string", "field 'text' is null, not a string")
    expected = ["good", Skipped("not UTF-8", "byte 3 is no UTF-8"), null, "more"]
    assert texts(make_reader(as_source(path))) == expected
    mended = read_all(make_reader(as_source(path), "replace"))
    assert [mended[1].record, mended[1].repaired] == [Text("caf\ufffd"), True]
    with pytest.raises(UserError, match=r", row 2: byte 3 is no UTF-8; mend the file"):
        texts(make_reader(as_source(path), "raise"))


@pytest.mark.parametrize("name", TABLES)
def test_chats_of_dictionaries_at_any_depth_are_read(tmp_path: Path, name: str) -> None:
    roles = encoded(pa.array(["user", "assistant"]), [0, 1, 0, 1])
    messages = pa.StructArray.from_arrays(
        [roles, encoded(unchecked(pa.string(), NO_NULL), [0, 1, 0, 2])], ["role", "content"]
    )
    chats = pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), messages)
    path = write_table(tmp_path / name, pa.table({"messages": chats}), 2)
    bad, good = texts(make_reader(as_source(path, record="chat")))
    assert bad == Skipped("not UTF-8", "byte 3 is no UTF-8")
    assert good == Chat(({"role": "user", "content": "good"}, {"role": "assistant", "content": "more"}))


def test_dictionaries_of_whole_lists_are_read(tmp_path: Path) -> None:
    ids = encoded(pa.array([[1, 2], [3]], pa.list_(pa.int32())), [1, 0, 1])
    few = pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 4], pa.int32()), encoded(pa.array([7, 8]), [0, 1, 1, 0])
    )
    path = write_table(tmp_path / "a.arrow", pa.table({"input_ids": ids, "few": few}), 3)
    for field, expected in {"input_ids": [[3], [1, 2], [3]], "few": [[7], [8], [8, 7]]}.items():
        found = texts(make_reader(as_source(path, record="ids", ids_field=field)))
        assert [one.ids.tolist() for one in found if isinstance(one, Ids)] == expected


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_masks_beside_ids_are_read_where_they_are_lists(tmp_path: Path, suffix: str) -> None:
    ids = pa.array([[1, 2, 0], [3]])
    padding = pa.array([[1, 1, 0], [1]], pa.list_(pa.int8()))
    spoken = pa.array([[True, False, True], [True]])
    for labels, learned in (
        (pa.array([[-100, 2, 0], None]), [False, False]),
        (pa.array([1, 2]), [True, False]),
    ):
        columns = {"labels": labels, "assistant_masks": spoken, "input_ids": ids, "attention_mask": padding}
        path = write_table(tmp_path / f"a.{suffix}", pa.table(columns), 3)
        first, second = texts(make_reader(as_source(path, record="ids")))
        assert isinstance(first, Ids) and isinstance(second, Ids) and second.learned is None
        assert first.learned is not None
        assert (first.ids.tolist(), first.learned.tolist()) == ([1, 2], learned)


def test_a_column_of_masks_that_are_no_lists_or_that_is_there_twice_is_not_passed_over(
    tmp_path: Path,
) -> None:
    ids = pa.array([[1, 2], [3, 4]])
    words = write_table(tmp_path / "a.parquet", pa.table({"input_ids": ids, "loss_mask": ["01", None]}), 3)
    first, second = texts(make_reader(as_source(words, record="ids")))
    assert isinstance(first, Skipped) and first.reason == "ids with labels or masks that do not fit"
    assert isinstance(second, Ids) and second.learned is None
    twice = pa.Table.from_arrays([ids, pa.array([[0, 1]] * 2), ids], ["input_ids", "loss_mask", "loss_mask"])
    path = write_table(tmp_path / "b.arrow", twice, 3)
    with pytest.raises(UserError, match="has 2 columns 'loss_mask'; rename all but one"):
        make_reader(as_source(path, record="ids"))
