from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data import inspect_figures as looking
from llmkit.data.building.prepare import prepare
from llmkit.data.inspect import inspect, marks, printable, show_row
from llmkit.data.prepared import PreparedData
from tests.data.building.test_packing import cut_by_walking
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer

Build = Callable[..., tuple[PreparedData, schema.Data]]
TOKENIZER = bytes_tokenizer("<|endoftext|>")
END = TOKENIZER.end_of_text_id


def run_of(data: schema.Data, **train: Any) -> schema.Config:
    return schema.Config(data=data, train=schema.Train(**train))


def lines_of(prepared: PreparedData, data: schema.Data, count: int = 0, **train: Any) -> list[str]:
    return list(inspect(run_of(data, **train), prepared, count, False))


def ids(*parts: str | int) -> np.ndarray:
    found = [[part] if isinstance(part, int) else list(part.encode()) for part in parts]
    return np.array([number for part in found for number in part])


def test_each_source_is_told_with_its_figures(prepared_bytes: Build) -> None:
    prepared, data = prepared_bytes()
    lines = lines_of(prepared, data)
    stored = prepared.sources[0].stored
    assert stored is not None
    start = lines.index("source text-0 (shards)")
    assert lines[start + 1].startswith("  held out: 20 documents, ")
    assert f"  380 documents, {stored.tokens:,} tokens" in lines[start + 2]
    assert lines[start + 3] == f"  shards: {prepared.sources[0].folder}"
    assert "tokens of a document (all, 380): median " in lines[start + 4]
    shares = [line for line in lines[start:] if line.startswith("    up to")]
    assert "%" in shares[0]
    row = data.sequence_length
    lengths = [stored.document(number).size + 1 for number in range(stored.documents)]
    cut = [length for length in cut_by_walking(lengths, row, 1) if length <= row]
    fits = sum(length <= row for length in lengths)
    assert 0 < len(cut) < fits
    assert f"  rows of {row:,} cut {len(cut):,} of the {fits:,} documents that would fit (all)" in lines
    frequent = next(i for i, line in enumerate(lines) if "most frequent tokens (all, " in line)
    assert "<|endoftext|>" in lines[frequent + 1]
    assert "' ' " in lines[frequent + 1]


def test_large_sources_are_sampled_and_that_is_told(
    prepared_bytes: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, data = prepared_bytes()
    stored = prepared.sources[0].stored
    assert stored is not None
    _, exact = looking.documents_in(stored, [(0, stored.tokens)], END)
    assert sorted(exact) == sorted(stored.document(number).size for number in range(stored.documents))
    monkeypatch.setattr(looking, "SAMPLE_TOKENS", stored.tokens // 4)
    monkeypatch.setattr(looking, "SAMPLE_PLACES", 8)
    lines = lines_of(prepared, data)
    assert any("tokens of a document (a sample, " in line for line in lines)
    assert any("most frequent tokens (a sample, " in line for line in lines)
    _, sampled = looking.documents_in(stored, looking.sample_ranges(stored), END)
    assert sampled.size > 50
    assert abs(sampled.mean() - exact.mean()) < 0.1 * exact.mean()


def test_the_mixture_tells_how_often_the_run_reads_each_source(prepared_bytes: Build) -> None:
    prepared, data = prepared_bytes()
    stage = schema.Stage(step=51, weights={"text-1": 0.0})
    lines = lines_of(prepared, data.model_copy(update={"curriculum": [stage]}), max_steps=100)
    assert "mixture from step 1: text-0 3 (75.0%), text-1 1 (25.0%)" in lines
    assert "mixture from step 51: text-0 3 (100.0%), text-1 0 (0.0%)" in lines
    rows = [-(-source.stored.period // 16) for source in prepared.sources if source.stored]
    told = [next(line for line in lines if line.startswith(f"  text-{i}: {rows[i]:,} rows")) for i in (0, 1)]
    # 3,200 rows: half of them three to one, the rest all of the first source.
    read = [int(line.split("reads ")[1].split(" ")[0].replace(",", "")) for line in told]
    assert sum(read) == 3200
    assert abs(read[0] - 2800) < 40
    stored = prepared.sources[0].stored
    assert stored is not None
    assert f"= {read[0] * 16 / stored.period:.2f} epochs" in told[0]


def test_without_a_known_end_nothing_is_said_of_epochs(prepared_bytes: Build) -> None:
    prepared, data = prepared_bytes()
    assert not any("epochs" in line for line in lines_of(prepared, data, max_minutes=1.0))


def test_rows_are_those_that_a_run_takes_first(prepared_bytes: Build) -> None:
    prepared, data = prepared_bytes()
    lines = lines_of(prepared, data, count=2, max_steps=1)
    titles = [line.strip() for line in lines if line.startswith("\n=== ")]
    assert [title.split(":")[0] for title in titles] == ["=== text-0"] * 2 + ["=== text-1"] * 2
    number = int(titles[0].split("row ")[1].split(" ")[0])
    stored = prepared.sources[0].stored
    assert stored is not None
    row = stored.rows(np.array([number]), 16)[0]
    shown = lines[next(i for i, line in enumerate(lines) if titles[0] in line) + 1]
    assert shown == show_row(row, None, prepared.tokenizer, marks("<|endoftext|>", False))


def test_a_row_without_colours_marks_what_is_no_target_and_where_documents_end() -> None:
    tokens = ids(END, "question", "answer", END, "text", END)
    targets = np.ones(tokens.size - 1, dtype=bool)
    targets[:8] = False
    shown = show_row(tokens, targets, TOKENIZER, marks("<|endoftext|>", False))
    assert shown.splitlines() == [
        "──── ⟦<|endoftext|>⟧ ────",
        "⟦question⟧answer",
        "──── <|endoftext|> ────",
        "text",
        "──── <|endoftext|> ────",
    ]


def test_a_row_with_colours_is_the_same_text() -> None:
    tokens, how = ids("text\n", END, "other"), marks("<|endoftext|>", True)
    shown = show_row(tokens, None, TOKENIZER, how)
    assert shown == f"{how.off}t{how.on}ext\n{how.end}\nother"


def test_text_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[31mb\x00\r\n\tc\u202ed\x9be") == "a\\x1b[31mb\\x00\\r\n\tc\\u202ed\\x9be"


def test_a_live_source_shows_the_first_rows_of_its_lanes(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text("".join(json.dumps({"text": f"record {number}"}) + "\n" for number in range(200)))
    data = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[schema.Source(type="jsonl", path=str(path), live=True)],
        sequence_length=16,
        cache_dir=str(tmp_path / "cache"),
    )
    prepared = prepare(data, lambda line: None)
    lines = lines_of(prepared, data, count=1, max_steps=10)
    assert any("tokenized while training: 1 files, 4.5 kB as stored, in 1 lanes" in line for line in lines)
    assert "  jsonl-0: rows are not counted, the run of 10 steps reads 320" in lines
    title = lines.index("\n=== jsonl-0: first row of lane 0 ===")
    assert "record" in lines[title + 1]


def test_a_live_source_that_runs_dry_before_a_row_says_so_and_the_others_are_shown(tmp_path: Path) -> None:
    (tmp_path / "dry").write_text("one\ntwo\nthree\n")
    (tmp_path / "other").write_text("".join(f"record {number}\n" for number in range(200)))
    sources = [
        schema.Source(
            type="text", path=str(tmp_path / name), name=name, separator="\n", live=True, max_epochs=2
        )
        for name in ("dry", "other")
    ]
    data = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=sources,
        sequence_length=64,
        cache_dir=str(tmp_path / "cache"),
    )
    lines = lines_of(prepare(data, lambda line: None), data, count=1)
    title = lines.index("\n=== dry: first row of lane 0 ===")
    assert [lines[title + 1].count(f"{word}\n") for word in ("one", "two", "three")] == [2, 2, 2]
    assert lines[title + 2] == "\n=== other: first row of lane 0 ==="
    assert "record" in lines[title + 3]


def test_bytes_a_token_are_told_only_where_all_tokens_are_learned(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because it is so"}]
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps({"messages": turns, "text": "some text"}) + "\n") * 900)
    sources = [
        schema.Source(type="jsonl", path=str(path), name="chat", record="chat"),
        schema.Source(type="jsonl", path=str(path), name="text"),
    ]
    data = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=sources,
        validation_fraction=0.0,
        sequence_length=64,
        cache_dir=str(tmp_path / "cache"),
    )
    lines = [line for line in lines_of(prepare(data, lambda line: None), data) if " documents, " in line]
    assert re.search(r" tokens, 14\.4 kB to learn$", lines[0])
    assert lines[1].endswith(" tokens, 8.1 kB (0.90 bytes a token)")
