from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llmkit.config import schema
from llmkit.data.building import corpus
from llmkit.data.building.prepare import prepare
from llmkit.errors import RunFault, UserError


def settings(tmp_path: Path, **changes: Any) -> schema.Data:
    fields: dict[str, Any] = {
        "tokenizer": schema.Tokenizer(type="bytes"),
        "sources": [schema.Source(type="jsonl", path=str(tmp_path / "r.jsonl"))],
        "sequence_length": 16,
        "cache_dir": str(tmp_path / "cache"),
    }
    return schema.Data(**fields | changes)


def write_records(tmp_path: Path, records: list[Any]) -> None:
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_is_left_out_is_counted_once_and_told(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "some text"}] * 60 + [{"text": ""}] * 3 + [{"text": None}] * 2)
    lines: list[str] = []
    prepared = prepare(settings(tmp_path, tokenizer=schema.Tokenizer(vocab_size=260)), lines.append)
    assert "data: jsonl-0: 5 documents left out: 3 empty, 2 no string" in lines
    assert prepared.left_out == {"jsonl-0": {"empty": 3, "no string": 2}}
    assert prepare(settings(tmp_path, tokenizer=schema.Tokenizer(vocab_size=260)), lines.append).left_out == (
        prepared.left_out
    )


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"text": ""}] * 3,
            r"source jsonl-0: there is no document to train on \(3 documents left out: 3 empty\)",
        ),
        ([], r"source jsonl-0: there is no document to train on \(0 of its 0 documents\)"),
    ],
)
def test_an_empty_source_is_refused(tmp_path: Path, records: list[Any], message: str) -> None:
    write_records(tmp_path, records)
    with pytest.raises(UserError, match=message):
        prepare(settings(tmp_path), lambda line: None)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_bad_document_stops_the_build_where_that_is_asked_for(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "fine"}] * 30 + [{"text": 1}])
    with pytest.raises(UserError, match=r"r.jsonl:31: field 'text' is 1, not a string"):
        prepare(settings(tmp_path, errors="raise"), lambda line: None)


def test_text_that_does_not_fill_a_row_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "abc"}])
    with pytest.raises(UserError, match=r"source jsonl-0: its 5 training tokens do not fill one row of 16"):
        prepare(settings(tmp_path), lambda line: None)


def test_a_vocabulary_that_the_text_cannot_fill_is_told(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "some text"}] * 30)
    lines: list[str] = []
    prepare(settings(tmp_path), lines.append)
    assert not any("WARNING" in line for line in lines)
    prepare(settings(tmp_path, tokenizer=schema.Tokenizer(vocab_size=500)), lines.append)
    assert any(
        "WARNING: the text yields a tokenizer of" in line and "500 are asked for" in line for line in lines
    )


@pytest.mark.parametrize(("records", "told"), [(19, True), (20, False)])
def test_where_nothing_can_be_held_out_that_is_told(tmp_path: Path, records: int, told: bool) -> None:
    write_records(tmp_path, [{"text": f"record {i}"} for i in range(records)])
    lines: list[str] = []
    prepared = prepare(settings(tmp_path), lines.append)
    assert any("jsonl-0: nothing is held out" in line for line in lines) == told
    assert len(prepared.heldout) == (not told)


def test_nothing_is_held_out_where_none_is_asked_for(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": "record"}] * 30)
    prepared = prepare(settings(tmp_path, heldout_every=0), lambda line: None)
    assert prepared.heldout == ()
    assert prepared.train[0].reader.index.documents == 30


def test_the_held_out_index_tells_what_compressors_make_of_the_text(tmp_path: Path) -> None:
    write_records(tmp_path, [{"text": f"record {i} " * 9} for i in range(50)])
    prepared = prepare(settings(tmp_path), lambda line: None)
    reader = prepared.heldout[0].reader
    text = "".join(prepared.tokenizer.decode(reader.document(i)) for i in range(2)).encode()
    assert reader.index.extra == {
        "xz_bits_per_byte": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
        "gzip_bits_per_byte": 8 * len(gzip.compress(text, 9)) / len(text),
    }


def test_much_held_out_text_is_not_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "COMPRESS_LIMIT", 100)
    write_records(tmp_path, [{"text": f"record {i} " * 9} for i in range(50)])
    assert prepare(settings(tmp_path), lambda line: None).heldout[0].reader.index.extra == {}


def test_the_tokenizer_is_trained_on_all_sources_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Callable[[str, int], Path]
) -> None:
    seen: list[str] = []

    def look(spec: schema.Tokenizer, texts: Iterable[str]) -> None:
        seen.extend(texts)
        raise RunFault

    monkeypatch.setattr(corpus, "TOKENIZER_TEXT", 200)
    monkeypatch.setattr(corpus, "make_tokenizer", look)
    sources = [
        schema.Source(type="text", path=str(words(name, 300)), separator="\n") for name in ("one", "two")
    ]
    with pytest.raises(RunFault):
        prepare(settings(tmp_path, sources=sources), lambda line: None)
    for name in ("one", "two"):
        assert 100 <= sum(len(text) for text in seen if text.startswith(name)) < 200


def test_long_builds_tell_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(corpus, "GROUP_TEXT", 100)
    write_records(tmp_path, [{"text": "x" * 50}] * 8)
    lines: list[str] = []
    prepare(settings(tmp_path, heldout_every=0), lines.append)
    assert [line for line in lines if "of 8 documents" in line] == [
        f"data: jsonl-0/train: {n} of 8 documents, 0 MB" for n in (2, 4, 6, 8)
    ]
