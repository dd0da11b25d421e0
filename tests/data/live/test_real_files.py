"""The rooms together: files on disk, the real encoder, processes."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data.live.source import LiveSource, open_reader
from llmkit.data.live.stream import Lane
from llmkit.data.live.workers import LiveRows
from llmkit.data.sources.files import list_files
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.make_tokenizer import make_tokenizer
from llmkit.errors import UserError
from tests.data.live.fakes import plain, rows_to_end

TOKENIZER = make_tokenizer(schema.Tokenizer(type="bytes"), [])
EVERY = 7


def open_live(path: Path, place: int, **changes: Any) -> LiveSource:
    spec = schema.Source(type="jsonl", path=str(path), live=True, **changes)
    config = schema.Data(
        sources=[spec], sequence_length=32, stream_shards=3, shuffle_window=5, validation_fraction=1 / EVERY
    )
    key = f"data.sources.{place}"
    reader = open_reader(spec, path.stem, key, config, list_files(spec, key))
    return LiveSource.of(reader, config, RecordEncoder(TOKENIZER)).keyed(place, seed=5)


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def stream(source: LiveSource) -> tuple[list[bytes], list[bytes]]:
    """The documents of an epoch, and of each what is learned; without what the last rows have no room for."""
    documents, learned = [], []
    for number in range(source.lanes):
        lane, tokens, targets = Lane(source, number), [np.zeros(0, dtype=int)], [np.zeros(0, dtype=bool)]
        for row in rows_to_end(lane):
            tokens.append(row.tokens[1:])
            targets.append(np.ones(32, dtype=bool) if row.targets is None else row.targets)
        ids, is_target = np.concatenate(tokens), np.concatenate(targets)
        ends = np.flatnonzero(ids == TOKENIZER.end_of_text_id)
        for start, end in zip([0, *(ends + 1)], ends):
            part = slice(start, end)
            if start == end:  # it fills up the last row
                continue
            documents.append(ids[part].astype(np.uint8).tobytes())
            learned.append(ids[part][is_target[part]].astype(np.uint8).tobytes())
    return documents, learned


def test_an_epoch_of_files_has_each_training_document_once(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    expected = []
    for number in range(3):
        texts = [f"text {number} {i} " + "é" * (i % 40) for i in range(60)]
        write(folder / f"{number}.jsonl", [{"text": text} for text in texts])
        expected += [text.encode() for i, text in enumerate(texts) if i % EVERY != EVERY - 1]
    documents, learned = stream(open_live(folder, 0, max_epochs=1))
    assert len(set(documents)) == len(documents)
    assert set(documents) == set(expected)
    assert learned == documents


def test_of_chats_the_assistants_words_are_learned(tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
        for i in range(40)
    ]
    path = write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    documents, learned = stream(open_live(path, 0, max_epochs=1, record="chat"))
    assert len(documents) > 25
    for document, words in zip(documents, learned, strict=True):
        number = document.split(b"question ")[1].split(b"<")[0]
        assert words.startswith(b"answer " + number)
        assert b"question" not in words


def test_processes_make_the_same_rows_of_real_sources(tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.jsonl", [{"text": "word " * (i % 30)} for i in range(90)])
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "p" * i, "completion": "c" * i} for i in range(30)])
    sources = {0: open_live(texts, 0), 1: open_live(pairs, 1, record="prompt_completion")}
    lanes = [(place, lane) for place, source in sources.items() for lane in range(source.lanes)]
    schedule = [key for key in lanes for _ in range(30)]
    with closing(LiveRows(sources, dict.fromkeys(lanes), schedule, 1, 100.0)) as rows:
        for place, lane in lanes:
            expected = Lane(sources[place], lane)
            taken = [rows.take(place, lane) for _ in range(30)]
            assert [plain(row) for row in taken] == [plain(next(expected)) for _ in range(30)]
            assert any(row.left_out for row in taken)


@pytest.mark.parametrize("wrong", [-100, 257, 1 << 40])
def test_ids_outside_the_vocabulary_are_left_out_and_the_others_read(tmp_path: Path, wrong: int) -> None:
    records = [{"input_ids": [65 + i % 26] * 9} for i in range(60)]
    records[22]["input_ids"][4] = wrong
    source = open_live(write(tmp_path / "ids.jsonl", records), 0, record="ids", max_epochs=1)
    rows = rows_to_end(Lane(source, 0))
    assert sum(row.left_out.get("with token ids outside the vocabulary", 0) for row in rows) == 1
    assert len(rows) > 12
    assert max(row.tokens.max() for row in rows) == TOKENIZER.end_of_text_id


def test_ids_outside_the_vocabulary_are_told_with_their_line_where_errors_are_to_end_the_run(
    tmp_path: Path,
) -> None:
    records = [{"input_ids": [65]}, {"input_ids": [-1]}]
    source = open_live(write(tmp_path / "ids.jsonl", records), 0, record="ids")
    source = replace(source, reader=replace(source.reader, errors="raise"))
    with pytest.raises(UserError, match=r"ids.jsonl:2: holds the token id -1, .*; mend the record, or set"):
        next(Lane(source, 0))
