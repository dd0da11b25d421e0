from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkit.config.schema import Data, Source, Tokenizer
from llmkit.data.building import build_source, probe
from llmkit.data.building.prepare import prepare
from llmkit.errors import UserError
from tests.data.shards.megatron_files import write_megatron
from tests.data.toy import folders

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such file": ({"type": "jsonl", "path": "gone.jsonl"}, r"data.sources.1.path: there is no .*gone"),
    "no such column": (
        {"type": "parquet", "path": "a.parquet", "text_field": "words"},
        r"data.sources.1.text_field: .*a.parquet has no column 'words'; its columns: text",
    ),
    "no such field": (
        {"type": "jsonl", "path": "a.jsonl", "text_field": "words"},
        r"source bad: it has no usable document \(401 documents left out: 401 without the field; "
        r".*a.jsonl:1: the record has no field 'words'; it has 'text', 'id'\)",
    ),
    "no such record": (
        {"type": "jsonl", "path": "a.jsonl", "record": "ids", "ids_field": "text"},
        r"source bad: .*401 no list of token ids; .*a.jsonl:1: field 'text' is \"0\", not a list of whole",
    ),
    "no shards": ({"type": "shards", "path": "none"}, r"source bad: \S*none is no folder of token shards"),
    "no held-out shards": (
        {"type": "shards", "path": "shards/train", "heldout_path": "none"},
        r"source bad: \S*none is no folder of token shards",
    ),
    "no index": ({"type": "megatron", "path": "none"}, r"none: there is no none.idx"),
    "no index of Megatron": ({"type": "megatron", "path": "toy"}, r"toy.idx: is no index of Megatron-LM"),
    "live": (
        {"type": "jsonl", "path": "a.jsonl", "text_field": "words", "live": True},
        r"source bad: it has no usable document",
    ),
    "damaged": ({"type": "jsonl", "path": "bad.jsonl.gz"}, r"bad.jsonl.gz: is damaged or cut short"),
    "UTF-16": (
        {"type": "jsonl", "path": "utf16.jsonl"},
        r"source bad: .* not UTF-8; .*utf16.jsonl:1: it is UTF-16, .* convert the file",
    ),
}

WITH_A_TOKENIZER: dict[str, tuple[dict[str, Any], str]] = {
    "no words to learn": (
        {"type": "jsonl", "path": "chats.jsonl", "record": "chat"},
        r"source bad: it has no usable document .*50 documents left out: 50 without a message of the role",
    ),
    "ids of another tokenizer": (
        {"type": "jsonl", "path": "ids.jsonl", "record": "ids"},
        r"source bad: .*50 documents left out: .*ids.jsonl:1: .*50000",
    ),
    "too little for a row": (
        {"type": "shards", "path": "small/train"},
        r"source bad: it has 4 training tokens, and a row of data.sequence_length 8 takes 9",
    ),
}
"""What is seen only where the tokenizer is there."""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = [json.dumps({"text": str(i), "id": i}) + "\n" for i in range(401)]
    Path("a.jsonl").write_text("".join(records))
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    Path("chats.jsonl").write_text(f"{json.dumps(chat)}\n" * 50)
    Path("ids.jsonl").write_text('{"input_ids": [1, 50000]}\n' * 50)
    Path("utf16.jsonl").write_text("".join(records[:9]), encoding="utf-16")
    Path("bad.jsonl.gz").write_bytes(b"\x1f\x8bno gzip at all")
    Path("toy.idx").write_bytes(b"no index")
    pq.write_table(pa.table({"text": ["a", "b"]}), "a.parquet")
    good = Source(type="jsonl", name="good", path="a.jsonl")
    built = folders(prepare(settings(good), lambda line: None))["good"]
    Path("shards").symlink_to(built)
    Path("small.jsonl").write_text('{"text": "ab"}\n')
    small = Source(type="jsonl", name="small", path="small.jsonl")
    Path("small").symlink_to(
        folders(prepare(settings(small, validation_fraction=0.0, sequence_length=2), print))["small"]
    )


def settings(*sources: Source, **fields: Any) -> Data:
    common: dict[str, Any] = {"tokenizer": Tokenizer(type="bytes"), "sequence_length": 8}
    return Data(sources=list(sources), **common | fields)


BYTES, TRAINED = Tokenizer(type="bytes"), Tokenizer(vocab_size=260)


@pytest.mark.parametrize(
    ("tokenizer", "mistake"),
    [*product([BYTES, TRAINED], MISTAKES), *product([BYTES], WITH_A_TOKENIZER)],
    ids=lambda value: value if isinstance(value, str) else value.type,
)
def test_a_later_source_is_looked_at_before_an_earlier_one_is_built(
    tokenizer: Tokenizer, mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_source, "write_shards", lambda *_, **__: pytest.fail("built"))
    fields, message = (MISTAKES | WITH_A_TOKENIZER)[mistake]
    good = Source(type="parquet", name="good", path="a.parquet")
    config = settings(good, Source(name="bad", **fields), tokenizer=tokenizer, validation_fraction=0.0)
    with pytest.raises(Exception, match=message) as failure:
        prepare(config, lambda line: pytest.fail(line))
    assert "mistakes" not in str(failure.value)


def test_the_mistakes_of_all_sources_are_told_together() -> None:
    config = settings(
        *(
            Source(name=f"bad{number}", **fields)
            for number, (fields, _) in enumerate(MISTAKES.values())
            if fields["path"] != "bad.jsonl.gz"
        )
    )
    with pytest.raises(UserError) as failure:
        prepare(config, lambda line: None)
    first, *others = str(failure.value).split("\n  ")
    assert first == "10 mistakes" and len(others) == 10


def test_mistakes_in_given_tokens_are_told_with_those_of_other_sources() -> None:
    write_megatron(Path("long"), [[[1, 2, 3]], [[*range(1, 30), 256]]])
    config = settings(
        Source(type="shards", name="small", path="small/train"),
        Source(type="jsonl", name="ids", path="ids.jsonl", record="ids"),
    )
    with pytest.raises(UserError, match=r"2 mistakes\n  source small: it has .*\n  source ids: it has no"):
        prepare(config, lambda line: pytest.fail(line))
    later = Source(type="jsonl", name="ids", path="ids.jsonl", record="ids")
    with pytest.raises(UserError, match=r"^source ids: it has no"):  # before all documents are looked at
        prepare(
            settings(Source(type="megatron", name="toy", path="long"), later), lambda line: pytest.fail(line)
        )


def test_what_is_in_the_cache_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Source(type="jsonl", name="good", path="a.jsonl")
    monkeypatch.setattr(probe, "look_at_source", lambda source: pytest.fail("looked at"))
    prepare(settings(good), lambda line: None)


def test_many_empty_records_do_not_condemn_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "RECORDS", 5)
    Path("a.jsonl").write_text('{"text": ""}\n' * 9 + '{"text": "word by word"}\n' * 9)
    source = Source(type="jsonl", name="good", path="a.jsonl")
    assert (
        prepare(settings(source, validation_fraction=0.0), lambda line: None).sources[0].stored.documents == 9
    )
    Path("a.jsonl").write_text('{"text": 1}\n' * 9 + '{"text": "word by word"}\n' * 9)
    with pytest.raises(
        UserError, match=r"none of its first 5 records can be used .5 documents left out: 5 no"
    ):
        prepare(settings(source, validation_fraction=0.0), lambda line: None)


def test_the_end_of_each_document_of_megatron_is_checked_once(tmp_path: Path) -> None:
    tokens = [list(b"some words")] * 40
    ended = [[[*one, 256]] for one in tokens]
    write_megatron(tmp_path / "toy", ended)
    source = Source(type="megatron", name="toy", path="toy")
    lines: list[str] = []
    prepare(settings(source), lines.append)
    assert any("each of 40 documents ends with end-of-text" in line for line in lines)
    lines.clear()
    prepare(settings(source), lines.append)
    assert not any("ends with" in line for line in lines)
    write_megatron(tmp_path / "toy", [[one[0][: 10 + (number % 2)]] for number, one in enumerate(ended)])
    with pytest.raises(UserError, match=r"20 of its 40 documents .*: document 1, whose last token is 115"):
        prepare(settings(source), lines.append)
