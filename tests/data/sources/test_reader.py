from __future__ import annotations

import gzip
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.config.schema import Source
from llmkit.data.sources import text_files
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import TOO_LONG, Chat, Ids, PromptCompletion, Skipped, Text
from llmkit.errors import RunFault, UserError
from tests.data.sources.conftest import make_reader, read_all
from tests.data.sources.tables_for_tests import TABLES, as_source, texts, write_table

Write = Callable[[str, bytes], str]
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("name", [*TABLES, "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_source_is_read_once_in_order_and_from_anywhere(
    tmp_path: Path, web: Any, name: str, is_remote: bool
) -> None:
    expected = [f"document {i} \u00e9 " * (i % 5 + 1) for i in range(300)]
    path, fields = tmp_path / name, {}
    if name in TABLES:
        write_table(path, pa.table({"id": range(300), "text": expected}), 40)
    elif name == "a.txt":
        path.write_text("\n".join(expected))
        fields = {"separator": "\n"}
    else:
        raw = "".join(json.dumps({"text": text}) + "\n" for text in expected).encode()
        pack = {".gz": gzip.compress, ".zst": lambda raw: zstd(raw[:7000]) + zstd(raw[7000:])}
        path.write_bytes(pack.get(path.suffix, bytes)(raw))
    web.files[f"/{name}"] = path.read_bytes()
    source = as_source(f"{web.url}/{name}" if is_remote else str(path), **fields)
    reader = make_reader(source, split_bytes=path.stat().st_size // 4)
    cannot_be_cut = ["a.jsonl.gz", "a.jsonl.zst", *(["a.stream.arrow"] if is_remote else [])]
    assert (len(reader.splits) == 1) == (name in cannot_be_cut)
    for one in (reader, make_reader(source)):
        assert texts(one) == expected
        for unit in range(len(one.splits)):
            check_from_anywhere(one, unit, 60 if is_remote else 11)


def check_from_anywhere(reader: SourceReader, unit: int, step: int) -> None:
    """Every `step`-th candidate, with its hint or without, is a place to go on from."""
    candidates = list(reader.read(unit))
    assert [candidate.number for candidate in candidates] == list(range(len(candidates)))
    for candidate in candidates[::step]:
        rest = candidates[candidate.number :]
        assert list(reader.read(unit, candidate.number, candidate.seek_hint)) == rest
        assert list(reader.read(unit, candidate.number)) == rest
    assert list(reader.read(unit, len(candidates))) == []


@given(
    lines=st.lists(st.text("a\u00e9\U0001f600\n", max_size=12), min_size=1, max_size=20),
    split_bytes=st.integers(1, 100),
    frame=st.integers(1, 100),
)
@settings(deadline=None, max_examples=60)
def test_any_cut_gives_each_record_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], split_bytes: int, frame: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    content = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines).encode()
    (folder / "a.jsonl").write_bytes(content)
    frames = [zstd(content[i : i + frame]) for i in range(0, len(content), frame)]
    (folder / "b.jsonl.zst").write_bytes(b"".join(frames))
    expected = [line if line.strip() else Skipped("empty", "there is no text") for line in lines]
    for name in ("a.jsonl", "b.jsonl.zst"):
        reader = make_reader(as_source(str(folder / name)), split_bytes=split_bytes)
        assert texts(reader) == expected
        for unit in range(len(reader.splits)):
            check_from_anywhere(reader, unit, 1)


def test_a_file_is_a_document_packed_or_not(write: Write, tmp_path: Path) -> None:
    write("d/b.txt", b"second\r\n")
    write("d/a.txt", b"first")
    write("d/c.txt.gz", gzip.compress(b"third"))
    write("d/e.txt.zst", zstd(b"fo") + zstd(b"urth"))
    reader = make_reader(Source(type="text", path=str(tmp_path / "d")))
    assert texts(reader) == ["first", "second\r\n", "third", "fourth"]
    assert [c.number for c in reader.read(0, 2)] == [2, 3]


def test_gzip_may_have_several_members_and_zero_bytes_at_its_end(write: Write) -> None:
    """As tapes and some object stores leave it, and as gzip itself accepts it."""
    whole = gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'{"text": "two"}\n')
    for padding in (b"", bytes(1), bytes(70_000)):
        assert texts(make_reader(as_source(write("a.jsonl.gz", whole + padding)))) == ["one", "two"]
    for damaged in (whole + b"junk", whole[:-3], whole[:-12] + b"junk" + whole[-8:], bytes(100)):
        with pytest.raises(RunFault, match=r"a.jsonl.gz: is damaged or cut short"):
            texts(make_reader(as_source(write("a.jsonl.gz", damaged))))


def test_a_separator_cuts_files_into_documents(write: Write, tmp_path: Path) -> None:
    write("d/a.txt", b"one\n--\ntwo\n--\n")
    write("d/b.txt", b"three")
    write("d/c.txt", b"")
    source = Source(type="text", path=str(tmp_path / "d"), separator="\n--\n")
    assert texts(make_reader(source)) == ["one", "two", "three"]


def test_the_standard_library_is_documents() -> None:
    reader = make_reader(Source(type="stdlib"))
    assert len(reader.splits) > 3
    assert sum(len(list(reader.read(unit))) for unit in (0, len(reader.splits) - 1)) > 2


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_columns_of_all_types_are_read(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    values = ["a", None, "", "b", "a"]
    column = (
        pa.array(values, pa.string()).cast(kind)
        if kind != pa.binary()
        else pa.array([v and v.encode() for v in values], kind)
    )
    reader = make_reader(as_source(write_table(tmp_path / name, pa.table({"text": column}), 2)))
    null = Skipped("no string", "field 'text' is null, not a string")
    assert texts(reader) == ["a", null, Skipped("empty", "there is no text"), "b", "a"]


@pytest.mark.parametrize("name", TABLES)
def test_rows_that_are_no_utf8_follow_the_policy(tmp_path: Path, name: str) -> None:
    raw = pa.array([b"good", b"caf\xe9", b"more"])
    column = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    roles = pa.array(["user"] * 3)
    chats = pa.ListArray.from_arrays(
        [0, 1, 2, 3], pa.StructArray.from_arrays([roles, column], ["role", "content"])
    )
    path = write_table(tmp_path / name, pa.table({"text": column, "messages": chats}), 3)
    assert texts(make_reader(as_source(path))) == ["good", Skipped("not UTF-8", "byte 3 is no UTF-8"), "more"]
    mended = read_all(make_reader(as_source(path), "replace"))
    assert [c.repaired for c in mended] == [False, True, False]
    assert mended[1].record == Text("caf\ufffd")
    with pytest.raises(UserError, match=r", row 2: byte 3 is no UTF-8; mend the file"):
        texts(make_reader(as_source(path), "raise"))
    chat = read_all(make_reader(as_source(path, record="chat"), "replace"))[1]
    assert chat.record == Chat(({"role": "user", "content": "caf\ufffd"},))


@pytest.mark.parametrize("name", [*TABLES, "a.jsonl"])
def test_records_of_all_kinds_are_read(tmp_path: Path, name: str) -> None:
    rows = [
        {"messages": MESSAGES, "prompt": "p", "completion": "c", "input_ids": [1, 2, 3]},
        {"messages": None, "prompt": None, "completion": "c", "input_ids": [1, None]},
        {"messages": [], "prompt": "", "completion": "c", "input_ids": []},
    ]
    path = tmp_path / name
    if name in TABLES:
        write_table(path, pa.Table.from_pylist(rows), 2)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    chat, no_chat, empty_chat = texts(make_reader(as_source(str(path), record="chat")))
    assert chat == Chat(tuple(MESSAGES))
    assert (no_chat.reason, empty_chat.reason) == ("no list of {role, content}", "empty")
    pair, no_pair, no_prompt = texts(make_reader(as_source(str(path), record="prompt_completion")))
    assert (pair, no_pair.reason, no_prompt) == (
        PromptCompletion("p", "c"),
        "no string",
        PromptCompletion("", "c"),
    )
    ids, no_ids, empty_ids = texts(make_reader(as_source(str(path), record="ids")))
    assert isinstance(ids, Ids) and ids.ids.dtype.str == "<i8" and ids.ids.tolist() == [1, 2, 3]
    assert (no_ids.reason, empty_ids.reason) == ("no list of token ids", "empty")


def test_only_the_needed_columns_are_read(tmp_path: Path, web: Any) -> None:
    noise = [i.to_bytes(4, "big") * 5000 for i in range(100)]
    table = pa.table({"before": noise, "text": [f"{i}" for i in range(100)], "after": noise})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    web.files["/a.parquet"] = path.read_bytes()
    assert len(texts(make_reader(as_source(f"{web.url}/a.parquet")))) == 100
    assert sum(end - start for start, end in web.ranges) < path.stat().st_size / 2


class TestPolicy:
    """What data.errors decides."""

    LINES = b'{"text": "a"}\n{"text": "\xff"}\n\n{"text": "b"}\n'

    def test_skip_leaves_out(self, write: Write) -> None:
        found = texts(make_reader(as_source(write("a.jsonl", self.LINES))))
        assert [one if isinstance(one, str) else one.reason for one in found] == [
            "a",
            "not UTF-8",
            "empty",
            "b",
        ]

    def test_replace_mends(self, write: Write) -> None:
        found = texts(make_reader(as_source(write("a.jsonl", self.LINES)), "replace"))
        assert [one if isinstance(one, str) else one.reason for one in found] == ["a", "\ufffd", "empty", "b"]

    @pytest.mark.parametrize("split_bytes", [1 << 20, 14, 5])
    def test_raise_names_the_line_however_the_file_is_cut(self, write: Write, split_bytes: int) -> None:
        reader = make_reader(as_source(write("a.jsonl", self.LINES)), "raise", split_bytes)
        message = r"a.jsonl:2: byte 10 is no UTF-8; mend the file, or set data.errors to skip or replace"
        with pytest.raises(UserError, match=message):
            texts(reader)

    def test_empty_ones_never_raise(self, write: Write) -> None:
        reader = make_reader(as_source(write("a.jsonl", b'\n{"text": ""}\n{"text": "a"}\n  \n')), "raise")
        assert [one for one in texts(reader) if isinstance(one, str)] == ["a"]


LONG = [b'{"text": "a"}', b'{"text": "%s"}' % (b"b" * 5000), b'{"text": "c"}']
PARTS = b"--".join(LONG)


@pytest.mark.parametrize(
    ("name", "content", "fields", "where"),
    [
        ("a.jsonl", b"\n".join(LONG), {}, ":2: the line"),
        ("a.jsonl.gz", gzip.compress(b"\n".join(LONG), mtime=0), {}, ":2: the line"),
        ("a.jsonl.zst", zstd(b"\n".join(LONG)), {}, ":2: the line"),
        ("a.txt", PARTS, {"separator": "--"}, ", document 2: the document"),
        ("a.txt.gz", gzip.compress(PARTS, mtime=0), {"separator": "--"}, ", document 2: the document"),
        ("a.txt", PARTS, {}, ": the document"),
        ("a.txt.zst", zstd(PARTS), {}, ": the document"),
    ],
)
@pytest.mark.parametrize("is_remote", [False, True])
def test_too_long_a_record_is_left_out(
    write: Write,
    web: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    fields: dict[str, str],
    where: str,
    is_remote: bool,
) -> None:
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 1000)
    web.files[f"/{name}"] = content
    path, is_text = f"{web.url}/{name}" if is_remote else write(name, content), "txt" in name
    source = Source(type="text" if is_text else "jsonl", path=path, **fields)
    found = texts(make_reader(source))
    assert [one.reason if isinstance(one, Skipped) else "" for one in found] == (
        ["", TOO_LONG, ""] if fields or not is_text else [TOO_LONG]
    )
    with pytest.raises(UserError) as failure:
        texts(make_reader(source, "raise"))
    hint = "; data.sources.0.separator cuts a text into documents" if is_text else ""
    assert str(failure.value).startswith(f"{path}{where} is longer than 256 MiB{hint}; mend the file, or")


def test_places_are_told_as_a_person_would_count(write: Write, tmp_path: Path, web: Any) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % i for i in range(20))
    web.files["/a.jsonl"] = lines

    def place(source: Source, split_bytes: int = 50) -> tuple[int, str]:
        reader = make_reader(source, split_bytes=split_bytes)
        before = sum(len(list(reader.read(unit))) for unit in range(len(reader.splits) - 1))
        return before, reader.location(len(reader.splits) - 1, 0)

    number, where = place(as_source(write("a.jsonl", lines)))
    assert number > 0 and where.endswith(f"a.jsonl:{number + 1}")
    packed = make_reader(as_source(write("a.jsonl.zst", zstd(lines[:100]) + zstd(lines[100:]))))
    assert packed.location(0, 6).endswith("a.jsonl.zst:7")
    number, where = place(as_source(write("a.txt", b"one--two--three--four" * 5), separator="--"))
    assert number > 0 and where.endswith(f"a.txt, document {number + 1}")
    table = pa.table({"text": list("abcdefgh")})
    number, where = place(as_source(write_table(tmp_path / "a.parquet", table, 3)), 1)
    assert number == 6 and where.endswith("a.parquet, row 7")
    number, where = place(as_source(write_table(tmp_path / "a.arrow", table, 3)), 1)
    assert number == 6 and where.endswith("a.arrow, row 7")
    assert make_reader(as_source(f"{web.url}/a.jsonl?key=secret")).location(0, 3) == f"{web.url}/a.jsonl:4"
    assert place(as_source(f"{web.url}/a.jsonl"))[1].startswith(f"{web.url}/a.jsonl, number 1 from byte 2")
    documents = make_reader(Source(type="text", path=[write("x.txt", b"x"), write("y.txt", b"y")]))
    assert documents.location(0, 1).endswith("y.txt")


def test_locations_are_the_same_in_whatever_order_they_are_asked_for(write: Write, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": "word " * (i % 6)}) + "\n" for i in range(60)).encode()
    table = pa.table({"text": [str(i) for i in range(20)]})
    for source, size in (
        (Source(type="jsonl", path=[write("a.jsonl", lines), write("b.jsonl", lines)]), 90),
        (as_source(write_table(tmp_path / "a.parquet", table, 3)), 1),
        (as_source(write_table(tmp_path / "a.arrow", table, 3)), 1),
    ):
        splits = range(len(make_reader(source, split_bytes=size).splits))
        assert len(splits) > 6
        expected = [make_reader(source, split_bytes=size).location(split, 0) for split in splits]
        for order in (splits, reversed(splits), [3, 1, 5, 0, 4, 2]):
            reader = make_reader(source, split_bytes=size)
            assert all(reader.location(split, 0) == expected[split] for split in order)


@pytest.mark.parametrize("split_bytes", [1 << 20, 60])
@pytest.mark.parametrize("errors", ["skip", "raise"])
def test_skipped_records_are_listed_with_their_lines(
    write: Write, tmp_path: Path, web: Any, split_bytes: int, errors: Any
) -> None:
    good = [f'{{"text": "{i}"}}' for i in range(30)]
    bad = {3: '{"text": ', 17: "", 29: '{"txt": 1}'}
    content = "\n".join(bad.get(i, line) for i, line in enumerate(good)).encode()
    web.files["/c.jsonl"] = content
    paths = [write("a.jsonl", content), write("b.jsonl", content), f"{web.url}/c.jsonl"]
    reader = make_reader(Source(type="jsonl", path=paths), errors, split_bytes)
    expected = [f"{path}:{line + 1}" for path in sorted(paths) for line in bad]
    found = list(reader.skipped())
    assert [location for location, _ in found] == expected
    assert [skipped.reason for _, skipped in found] == ["broken JSON", "empty", "without the field"] * 3
    table = pa.table({"text": ["a", None, "b", None]})
    rows = make_reader(as_source(write_table(tmp_path / "a.parquet", table, 2)), errors, 1)
    assert [location.rpartition("a.parquet")[2] for location, _ in rows.skipped()] == [", row 2", ", row 4"]
    documents = [write("x.txt", b" "), write("y.txt", b"y"), write("z.txt", b"")]
    prose = make_reader(Source(type="text", path=documents), errors)
    assert [location for location, _ in prose.skipped()] == [documents[0], documents[2]]


def test_flipped_bytes_in_a_parquet_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, pa.table({"text": [f"some text {i}" for i in range(5000)]}), 5000)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFault, match=r"a.parquet: is damaged or cut short \("):
        texts(make_reader(as_source(str(path))))


@pytest.mark.parametrize("name", ["a.arrow", "a.stream.arrow"])
@pytest.mark.parametrize("record", ["text", "ids"])
def test_offsets_that_lead_out_of_an_arrow_file_are_told(tmp_path: Path, name: str, record: Any) -> None:
    path, offsets = tmp_path / name, pa.array([0, 10, 20, 30], pa.int32())
    table = pa.table({"text": ["0123456789"] * 3, "input_ids": [list(range(10))] * 3})
    write_table(path, table, 3)
    before = offsets.buffers()[1].to_pybytes()
    content = path.read_bytes()
    assert content.count(before) == 2
    path.write_bytes(
        content.replace(before, pa.array([0, 10, 2**30, 30], pa.int32()).buffers()[1].to_pybytes())
    )
    with pytest.raises(RunFault, match=rf"{name}: is damaged or cut short \(ArrowInvalid"):
        texts(make_reader(as_source(str(path), record=record)))


@pytest.mark.parametrize("name", [*TABLES, "a.jsonl"])
def test_a_file_that_changes_between_two_units_is_told(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pa.table({"text": [f"text {i}" for i in range(100)]})
    if name in TABLES:
        write_table(path, table, 10)
    else:
        path.write_text("\n".join(map(json.dumps, table.to_pylist())))
    reader = make_reader(as_source(str(path)), split_bytes=100)
    list(reader.read(0))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RunFault, match=rf"{name}: the file changed while the job runs"):
        list(reader.read(1))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "a.jsonl.gz"])
def test_a_server_that_fails_in_mid_file_is_told_as_such(tmp_path: Path, web: Any, name: str) -> None:
    path = tmp_path / name
    if name in TABLES:
        write_table(path, pa.table({"text": [f"{i * 7919}" * 500 for i in range(2000)]}), 200)
    else:
        path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 10, 0) * 40_000)
    web.files[f"/{name}"] = path.read_bytes()
    reader = make_reader(as_source(f"{web.url}/{name}"))
    web.trouble = lambda number, start, end: 503 if end > 300_000 else None
    with pytest.raises(
        RunFault, match=rf"/{name}: cannot be read from byte \d+ on after 3 attempts \(HTTP 503"
    ):
        texts(reader)


def test_a_dataset_laid_out_like_one_of_the_hub_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for folder in ("tables", "lines", "prose"):
        (tmp_path / folder / "data").mkdir(parents=True)
    write_table(tmp_path / "tables/data/train-00000-of-00001.parquet", pa.table({"text": ["a", "b"]}), 1)
    (tmp_path / "lines/data/train.json").write_text('{"text": "c"}\n{"text": "d"}\n')
    (tmp_path / "prose/data/train.txt").write_text("e\nf\n")
    found = [
        texts(make_reader(Source(type="hub", dataset=str(tmp_path / name))))
        for name in ("tables", "lines", "prose")
    ]
    assert found == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_any_store_of_fsspec_is_read() -> None:
    fsspec.filesystem("memory").pipe("/reader/a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 3))
    assert texts(make_reader(Source(type="jsonl", path="memory://reader"))) == ["x"] * 3


def test_a_reader_can_be_sent_to_another_process(write: Write) -> None:
    reader = make_reader(as_source(write("a.jsonl", b'{"text": "x"}\n')))
    assert texts(pickle.loads(pickle.dumps(reader))) == ["x"]


def test_reading_needs_no_torch(write: Write) -> None:
    path = write("a.jsonl.zst", zstd(b'{"text": "x"}\n'))
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_read_and_tell, args=(make_reader(as_source(path)), sender))
    process.start()
    assert receiver.recv() == (["x"], False)
    process.join()


def _read_and_tell(reader: SourceReader, sender: Any) -> None:
    import sys

    sender.send((texts(reader), "torch" in sys.modules))
