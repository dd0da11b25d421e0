from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import Source
from llmkit.data.sources import documents as module
from llmkit.data.sources.documents import Documents, Policy, left_out_summary, split_heldout
from llmkit.errors import UserError

BAD_LINES: list[tuple[bytes, str, str]] = [
    (b'{"text": "\xff"}', "not UTF-8", "byte 10 is no UTF-8"),
    (b'{"text": "\\ud800"}', "not UTF-8", "a lone surrogate"),
    (b'{"text": null}', "no string", "field 'text' is null, not a string"),
    (b'{"text": 5}', "no string", "field 'text' is 5, not a string"),
    (b'{"body": "x"}', "without the field", "the record has no field 'text'"),
    (b'{"text": "x"', "broken JSON", "broken JSON"),
    (b"[" * 100_000, "broken JSON", "broken JSON"),
    (b'["x"]', "no JSON object", "not a JSON object"),
]


def read(source: Source, errors: Policy = "skip") -> tuple[list[str], Counter[str]]:
    documents, left_out = Documents(source, "toy", "data.sources[0]", errors), Counter[str]()
    return list(documents.texts(range(len(documents)), left_out)), left_out


def jsonl(tmp_path: Path, content: bytes, **fields: Any) -> Source:
    (tmp_path / "r.jsonl").write_bytes(content)
    return Source(type="jsonl", path=str(tmp_path / "r.jsonl"), **fields)


def test_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second\r\n")
    (tmp_path / "a.txt").write_text("first")
    assert read(Source(type="text", path=str(tmp_path))) == (["first", "second\r\n"], Counter())


def test_a_separator_cuts_files_into_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n--\ntwo\n--\n")
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "c.txt").write_text("")
    source = Source(type="text", path=str(tmp_path), separator="\n--\n")
    assert read(source) == (["one", "two", "three"], Counter())


@given(
    content=st.text("ab|\u00e9", max_size=30).map(str.encode),
    separator=st.sampled_from(["|", "||", "|a|", "\u00e9"]).map(str.encode),
    chunk=st.integers(1, 12),
)
def test_cuts_are_those_of_split_however_the_file_is_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, separator: bytes, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "file"
    path.write_bytes(content)
    parts = content.split(separator)
    if parts[-1] == b"":  # nothing after the last separator is no document
        parts.pop()
    assert [content[a:b] for a, b in module._cut(path, separator, chunk)] == parts


def test_a_line_is_a_record(tmp_path: Path) -> None:
    lines = b'\xef\xbb\xbf{"text": "one"}\n{"text": "t\\nw\\ud83d\\ude00", "id": 3}\r\n{"text": "last"}'
    assert read(jsonl(tmp_path, lines)) == (["one", "t\nw\U0001f600", "last"], Counter())


def test_another_field_may_hold_the_text(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path, b'{"body": "x"}\n', text_field="body"))[0] == ["x"]


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES)
def test_a_bad_record_is_left_out_and_counted(tmp_path: Path, line: bytes, reason: str, detail: str) -> None:
    source = jsonl(tmp_path, b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    assert read(source) == (["a", "b"], Counter({reason: 1}))


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES)
def test_a_bad_record_stops_with_its_line_where_that_is_asked_for(
    tmp_path: Path, line: bytes, reason: str, detail: str
) -> None:
    source = jsonl(tmp_path, b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"r.jsonl:2: .*{detail}.*; mend the file, or set data.errors"):
        read(source, "raise")


@pytest.mark.parametrize("line", [b'{"text": "x\xff"}', b'{"text": "x\\ud800"}'])
def test_what_is_no_utf8_can_be_mended(tmp_path: Path, line: bytes) -> None:
    assert read(jsonl(tmp_path, line), "replace") == (["x\ufffd"], Counter({"mended with U+FFFD": 1}))


def test_a_file_that_is_no_utf8_follows_the_policy(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9!")
    source = Source(type="text", path=str(tmp_path))
    assert read(source, "skip") == ([], Counter({"not UTF-8": 1}))
    assert read(source, "replace") == (["caf\ufffd!"], Counter({"mended with U+FFFD": 1}))
    with pytest.raises(UserError, match=r"bad.txt: byte 3 is no UTF-8"):
        read(source, "raise")


@pytest.mark.parametrize("errors", ["skip", "replace", "raise"])
def test_empty_documents_are_left_out_by_every_policy(tmp_path: Path, errors: Policy) -> None:
    source = jsonl(tmp_path, b'\n{"text": ""}\n  \n{"text": "a"}\n{"text": " \\n"}\n')
    assert read(source, errors) == (["a"], Counter({"empty": 4}))


def test_documents_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    records = "\n".join(json.dumps({"text": f"t{i}"}) for i in range(10))
    documents = Documents(jsonl(tmp_path, records.encode()), "toy", "p", "skip")
    assert list(documents.texts([7, 0, 7], Counter())) == ["t7", "t0", "t7"]


def test_the_held_out_choice_is_fixed() -> None:
    order = list(range(674))
    random.Random(0).shuffle(order)
    assert split_heldout(674, 20) == (order[33:], order[:33])


@pytest.mark.parametrize(("count", "every", "heldout"), [(19, 20, 0), (20, 20, 1), (5, 0, 0), (5, 1, 5)])
def test_one_document_in_so_many_is_held_out(count: int, every: int, heldout: int) -> None:
    train, held = split_heldout(count, every)
    assert len(held) == heldout
    assert sorted(train + held) == list(range(count))


def test_what_is_left_out_is_told_in_one_line() -> None:
    counts = Counter({"not UTF-8": 2, "empty": 3, "mended with U+FFFD": 4})
    assert left_out_summary(counts) == "5 documents left out: 3 empty, 2 not UTF-8; 4 mended with U+FFFD"
    assert left_out_summary(Counter({"empty": 1})) == "1 document left out: 1 empty"
    assert left_out_summary(Counter()) == ""
