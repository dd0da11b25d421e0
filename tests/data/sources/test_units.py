from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.config.schema import Source
from llmkit.data.sources.listing import File, list_files
from llmkit.data.sources.units import Unit, cut_into_units
from llmkit.errors import UserError

Write = Callable[[str, bytes], str]


def units_of(path: Any, kind: Any, unit_bytes: int, **fields: Any) -> list[Unit]:
    source = Source(type=kind, path=path if isinstance(path, list) else str(path), **fields)
    return cut_into_units(source, list_files(source, "p"), unit_bytes, "p")


def edges(units: list[Unit]) -> list[tuple[int, int]]:
    return [(unit.start, unit.end) for unit in units]


def test_a_file_is_cut_into_even_parts(write: Write) -> None:
    paths = [write("a.jsonl", b"x" * 10), write("b.jsonl", b""), write("c.jsonl", b"x" * 4)]
    assert units_of(paths, "jsonl", 4) == [
        Unit(0, 0, 3, 3),
        Unit(0, 3, 6, 3),
        Unit(0, 6, 10, 4),
        Unit(2, 0, 4, 4),
    ]


def test_units_go_through_json(write: Write) -> None:
    units = units_of(write("a.jsonl", b"x" * 10), "jsonl", 4)
    assert [Unit(*unit) for unit in json.loads(json.dumps(units))] == units


def test_files_that_are_documents_are_grouped(write: Write) -> None:
    paths = [write(name, b"x" * size) for name, size in zip("abcdef", (9, 3, 2, 9, 0, 1), strict=True)]
    units = [Unit(0, 0, 1, 9), Unit(1, 1, 3, 5), Unit(3, 3, 4, 9), Unit(4, 4, 6, 1)]
    assert units_of(paths, "text", 5) == units


def test_a_gzip_file_is_not_cut(write: Write) -> None:
    assert edges(units_of(write("a.jsonl.gz", b"x" * 100), "jsonl", 10)) == [(0, 100)]


def test_zstd_files_are_cut_between_frames(write: Write) -> None:
    frames = [pa.compress(bytes([i]) * 100, codec="zstd", asbytes=True) for i in range(5)]
    one, all_of_it = len(frames[0]), len(b"".join(frames))
    path = write("a.jsonl.zst", b"".join(frames))
    assert edges(units_of(path, "jsonl", one + 1)) == [(0, 2 * one), (2 * one, 4 * one), (4 * one, all_of_it)]
    text = write("a.txt.zst", b"".join(frames))
    assert edges(units_of(text, "text", 1, separator="\n\n")) == [(0, all_of_it)]


def test_a_zstd_file_of_skippable_frames_only_is_an_empty_file(write: Write) -> None:
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    assert units_of(write("a.jsonl.zst", 2 * skippable), "jsonl", 1) == []


def test_parquet_files_are_cut_between_row_groups(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{i:03d} " * 50 for i in range(100)], "other": [b"x" * 10_000] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="zstd", use_dictionary=False)
    units = units_of(tmp_path / "a.parquet", "parquet", 250_000)
    assert edges(units) == [(start, min(10, start + 3)) for start in range(0, 10, 3)]
    groups = [unit.end - unit.start for unit in units]
    assert all(1e5 * count < unit.size < 1.1e5 * count for count, unit in zip(groups, units, strict=True))


@pytest.mark.parametrize("is_stream", [True, False])
def test_arrow_files_are_cut_between_record_batches(tmp_path: Path, is_stream: bool) -> None:
    table = pa.table({"text": [f"{i:03d} " * 50 for i in range(100)]})
    opened = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    units = units_of(tmp_path / "a.arrow", "arrow", 5000)
    assert len(units) == 4
    assert all(unit.end == after.start for unit, after in pairwise(units))
    assert units_of(tmp_path / "a.arrow", "arrow", 1)[0].start == units[0].start


def test_a_table_without_the_column_is_refused_once(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    message = r"p.text_field: .*a.parquet has no column 'text'; its columns: body, id"
    with pytest.raises(UserError, match=message):
        units_of(tmp_path / "a.parquet", "parquet", 1)


@pytest.mark.parametrize(
    ("record", "column", "message"),
    [
        ("text", pa.array([5]), r"p.text_field: column 'x' of .*a.parquet is int64, not text"),
        ("text", pa.array([["a"]]), r"is list<.*string>, not text"),
        ("chat", pa.array(["hi"]), r"p.messages_field: .* is string, not a list of messages"),
        ("ids", pa.array([[0.5]]), r"p.ids_field: .* is list<.*double>, not a list of whole numbers"),
        ("prompt_completion", pa.array([1]), r"p.prompt_field: .* is int64, not text"),
    ],
)
def test_a_column_of_another_type_is_refused_once(
    tmp_path: Path, record: Any, column: pa.Array, message: str
) -> None:
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    fields = dict.fromkeys(
        ("text_field", "messages_field", "ids_field", "prompt_field", "completion_field"), "x"
    )
    with pytest.raises(UserError, match=message):
        units_of(tmp_path / "a.parquet", "parquet", 1, record=record, **fields)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_two_columns_of_the_same_name_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    table = pa.table([pa.array(["x"]), pa.array([1]), pa.array(["y"])], names=["text", "id", "text"])
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=rf"p.text_field: .*a.{kind} has 2 columns 'text'; rename all but"):
        units_of(path, kind, 1)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"ARROW1\0\0garbage", b"PAR1garbagePAR1"])
def test_a_damaged_table_is_a_mistake_told_at_once(write: Write, kind: str, content: bytes) -> None:
    with pytest.raises(UserError, match=rf"a.{kind}: is (damaged or cut short|empty)"):
        units_of(write(f"a.{kind}", content), kind, 1)


def test_an_empty_table_elsewhere_is_told_without_secrets() -> None:
    file = File("https://user:password@host/a.parquet?sig=secret", 0, "")
    with pytest.raises(UserError, match=r"^https://host/a.parquet: is empty"):
        cut_into_units(Source(type="parquet", path=file.path), [file], 1)


def test_a_truncated_table_is_a_mistake_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 1000] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a.parquet: is damaged or cut short"):
        units_of(path, "parquet", 1)


@pytest.mark.parametrize("lost", [1, 7, 9, 100])
def test_a_truncated_arrow_stream_is_a_mistake_told_at_once(tmp_path: Path, lost: int) -> None:
    path, table = tmp_path / "a.arrow", pa.table({"text": ["x" * 100] * 100})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UserError, match=r"a.arrow: is damaged or cut short"):
        units_of(path, "arrow", 1)


def test_an_arrow_stream_that_ends_before_its_file_is_refused(tmp_path: Path) -> None:
    path, table = tmp_path / "a.arrow", pa.table({"text": ["x" * 100] * 100})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    content, end = path.read_bytes(), units_of(path, "arrow", 1)[0].end
    assert len(units_of(path, "arrow", 1)) == 2
    path.write_bytes(content[:end] + b"\xff\xff\xff\xff\0\0\0\0" + content[end:])
    with pytest.raises(UserError, match=rf"the stream ends at byte {end}, the file does not"):
        units_of(path, "arrow", 1)
    path.write_bytes(content[:-8])  # the mark of the end is optional
    assert len(units_of(path, "arrow", 1)) == 2


def test_a_truncated_zstd_file_is_a_mistake_told_at_once(write: Write) -> None:
    packed = pa.compress(b"x" * 1000, codec="zstd", asbytes=True)
    with pytest.raises(UserError, match=r"a.jsonl.zst: is damaged: it ends within a zstd frame"):
        units_of(write("a.jsonl.zst", packed[:-2]), "jsonl", 1)


@pytest.mark.parametrize("name", ["a.json", "a.JSON"])
def test_a_file_of_one_json_array_is_refused(write: Write, name: str) -> None:
    path = write(name, b'[{"text": "x"}]')
    with pytest.raises(UserError, match=rf"{name}: holds one JSON array; only a record a line is read"):
        units_of(path, "jsonl", 1)
    assert len(units_of(path, "text", 100, separator="\n")) == 1


def test_a_json_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.json").write_text('\n [{"text": "x"}]')
    source = Source(type="hub", dataset=str(tmp_path / "d"))
    with pytest.raises(UserError, match=r"train.json: holds one JSON array; .* a line is read, as .jq -c"):
        cut_into_units(source, list_files(source, "p"), 1, "p")
