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
from llmkit.data.sources.files import File, list_files
from llmkit.data.sources.splits import Split, split_files
from llmkit.errors import UserError

Write = Callable[[str, bytes], str]


def splits_of(path: Any, kind: Any, split_bytes: int, **fields: Any) -> list[Split]:
    source = Source(type=kind, path=path if isinstance(path, list) else str(path), **fields)
    return split_files(source, list_files(source, "p"), split_bytes, "p")


def edges(splits: list[Split]) -> list[tuple[int, int]]:
    return [(split.start, split.end) for split in splits]


def test_a_file_is_cut_into_even_parts(write: Write) -> None:
    paths = [write("a.jsonl", b"x" * 10), write("b.jsonl", b""), write("c.jsonl", b"x" * 4)]
    assert splits_of(paths, "jsonl", 4) == [
        Split(0, 0, 3, 3),
        Split(0, 3, 6, 3),
        Split(0, 6, 10, 4),
        Split(2, 0, 4, 4),
    ]


def test_splits_go_through_json(write: Write) -> None:
    splits = splits_of(write("a.jsonl", b"x" * 10), "jsonl", 4)
    assert [Split(*split) for split in json.loads(json.dumps(splits))] == splits


def test_files_that_are_documents_are_grouped(write: Write) -> None:
    paths = [write(name, b"x" * size) for name, size in zip("abcdef", (9, 3, 2, 9, 0, 1), strict=True)]
    splits = [Split(0, 0, 1, 9), Split(1, 1, 3, 5), Split(3, 3, 4, 9), Split(4, 4, 6, 1)]
    assert splits_of(paths, "text", 5) == splits


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.zst"])
def test_a_compressed_file_is_not_cut(write: Write, name: str) -> None:
    path, kind = write(name, b"x" * 100), "jsonl" if "jsonl" in name else "text"
    assert edges(splits_of(path, kind, 10, separator="\n\n" if kind == "text" else None)) == [(0, 100)]


def test_parquet_files_are_cut_between_row_groups(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{i:03d} " * 50 for i in range(100)], "other": [b"x" * 10_000] * 100})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="zstd", use_dictionary=False)
    splits = splits_of(tmp_path / "a.parquet", "parquet", 250_000)
    assert edges(splits) == [(start, min(10, start + 3)) for start in range(0, 10, 3)]
    groups = [split.end - split.start for split in splits]
    assert all(1e5 * count < split.size < 1.1e5 * count for count, split in zip(groups, splits, strict=True))


@pytest.mark.parametrize("is_stream", [True, False])
def test_arrow_files_are_cut_between_record_batches(tmp_path: Path, is_stream: bool) -> None:
    table = pa.table({"text": [f"{i:03d} " * 50 for i in range(100)]})
    opened = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    splits = splits_of(tmp_path / "a.arrow", "arrow", 5000)
    assert len(splits) == 4
    assert all(split.end == after.start for split, after in pairwise(splits))
    assert splits_of(tmp_path / "a.arrow", "arrow", 1)[0].start == splits[0].start


def test_a_table_without_the_column_is_refused_once(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), tmp_path / "a.parquet")
    message = r"p.text_field: .*a.parquet has no column 'text'; its columns: body, id"
    with pytest.raises(UserError, match=message):
        splits_of(tmp_path / "a.parquet", "parquet", 1)


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
        splits_of(tmp_path / "a.parquet", "parquet", 1, record=record, **fields)


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
        splits_of(path, kind, 1)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"ARROW1\0\0garbage", b"PAR1garbagePAR1"])
def test_a_damaged_table_is_a_mistake_told_at_once(write: Write, kind: str, content: bytes) -> None:
    with pytest.raises(UserError, match=rf"a.{kind}: is (damaged or cut short|empty)"):
        splits_of(write(f"a.{kind}", content), kind, 1)


def test_an_empty_table_elsewhere_is_told_without_secrets() -> None:
    file = File("https://user:password@host/a.parquet?sig=secret", 0, "")
    with pytest.raises(UserError, match=r"^https://host/a.parquet: is empty"):
        split_files(Source(type="parquet", path=file.path), [file], 1)


def test_a_truncated_table_is_a_mistake_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 1000] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a.parquet: is damaged or cut short"):
        splits_of(path, "parquet", 1)


@pytest.mark.parametrize("lost", [1, 7, 9, 100])
def test_a_truncated_arrow_stream_is_a_mistake_told_at_once(tmp_path: Path, lost: int) -> None:
    path, table = tmp_path / "a.arrow", pa.table({"text": ["x" * 100] * 100})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UserError, match=r"a.arrow: is damaged or cut short"):
        splits_of(path, "arrow", 1)


def test_an_arrow_stream_that_ends_before_its_file_is_refused(tmp_path: Path) -> None:
    path, table = tmp_path / "a.arrow", pa.table({"text": ["x" * 100] * 100})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    content, end = path.read_bytes(), splits_of(path, "arrow", 1)[0].end
    assert len(splits_of(path, "arrow", 1)) == 2
    path.write_bytes(content[:end] + b"\xff\xff\xff\xff\0\0\0\0" + content[end:])
    with pytest.raises(UserError, match=rf"the stream ends at byte {end}, the file does not"):
        splits_of(path, "arrow", 1)
    path.write_bytes(content[:-8])  # the mark of the end is optional
    assert len(splits_of(path, "arrow", 1)) == 2


@pytest.mark.parametrize("name", ["a.json", "a.JSON"])
def test_a_file_of_one_json_array_is_refused(write: Write, name: str) -> None:
    path = write(name, b'[{"text": "x"}]')
    with pytest.raises(UserError, match=rf"{name}: holds one JSON array; only a record a line is read"):
        splits_of(path, "jsonl", 1)
    assert len(splits_of(path, "text", 100, separator="\n")) == 1


def test_a_json_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.json").write_text('\n [{"text": "x"}]')
    source = Source(type="hub", dataset=str(tmp_path / "d"))
    with pytest.raises(UserError, match=r"train.json: holds one JSON array; .* a line is read, as .jq -c"):
        split_files(source, list_files(source, "p"), 1, "p")
