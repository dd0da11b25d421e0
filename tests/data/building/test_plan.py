from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data.building import plan
from llmkit.data.building.plan import plan_build, plan_command, plan_lines
from llmkit.data.building.prepare import prepare
from llmkit.errors import UserError
from tests.data.toy import folders


def settings(tmp_path: Path, sources: list[schema.Source], **changes: Any) -> schema.Data:
    fields: dict[str, Any] = {
        "tokenizer": schema.Tokenizer(type="bytes"), "sources": sources, "sequence_length": 16,
        "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    return schema.Data(**fields | changes)


def source(tmp_path: Path, name: str, count: int, **more: Any) -> schema.Source:
    sizes = np.random.default_rng(len(name)).integers(1, 30, count).tolist()
    records = [{"text": "word " * size} for size in sizes]
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return schema.Source(type="jsonl", path=str(path), name=name, **more)


def shard_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.*") if path.suffix != ".json")


def test_what_is_measured_whole_is_what_is_built_and_nothing_is_written(tmp_path: Path) -> None:
    config = settings(tmp_path, [source(tmp_path, "a", 300), source(tmp_path, "live", 90, live=True)])
    before = sorted(tmp_path.iterdir())
    one, live = plan_build(config).sources
    assert sorted(tmp_path.iterdir()) == before
    lines: list[str] = []
    prepared = prepare(config, lines.append)
    stored = prepared.sources[0].stored
    assert stored is not None
    held = prepared.heldout["a"]
    assert (one.sampled, one.documents, one.left_out) == (1.0, stored.documents + held.documents, 0)
    assert one.text_bytes == (stored.text_bytes or 0) + held.index.text_bytes
    assert one.tokens == stored.tokens + held.tokens - 1  # each stream begins with an end-of-text
    assert one.disk_bytes == pytest.approx(shard_bytes(folders(prepared)["a"]), abs=20)
    assert one.folder == str(folders(prepared)["a"])
    assert (one.is_built, live.tokens, live.kind) == (False, None, "live")
    again = plan_build(config)
    assert (again.sources[0].is_built, again.disk_bytes, again.seconds) == (True, 0, 0)


def test_a_sample_tells_the_size_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tmp_path, [source(tmp_path, "a", 20_000)])
    (whole,) = plan_build(config).sources
    monkeypatch.setattr(plan, "SAMPLE_TEXT", 100_000)
    (part,) = plan_build(config).sources
    assert part.sampled is not None
    assert 0.05 < part.sampled < 0.2
    for figure in ("documents", "text_bytes", "tokens", "disk_bytes"):
        assert getattr(part, figure) == pytest.approx(getattr(whole, figure), rel=0.1), figure


def test_a_tokenizer_that_is_to_be_trained_is_stood_in_for(tmp_path: Path) -> None:
    tokenizer = schema.Tokenizer(type="bpe", vocab_size=300)
    made = plan_build(settings(tmp_path, [source(tmp_path, "a", 300)], tokenizer=tokenizer))
    assert made.tokenizer is not None
    assert (made.sources[0].folder, made.sources[0].is_built) == (None, False)
    assert 0 < (made.sources[0].tokens or 0) < (made.sources[0].text_bytes or 0)
    assert not (tmp_path / "cache").exists()


def test_the_plan_as_text_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    config = settings(tmp_path, [source(tmp_path, "a", 300), source(tmp_path, "b", 90, live=True)])
    plan_command(config, None, 3, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["workers"], told["free_bytes"], told["peak_bytes"]) == (3, 10, 2 * told["disk_bytes"])
    assert [one["name"] for one in told["sources"]] == ["a", "b"]
    lines = list(plan_lines(plan_build(config, workers=3)))
    assert lines[0].split()[:6] == ["source", "files", "stored", "unpacked", "documents", "tokens"]
    assert lines[1].split()[:2] == ["a", "1"]
    assert lines[2].endswith("tokenized in training")
    assert lines[-1] == "WARNING: the disk has not that much room; name another data.cache_dir"
    monkeypatch.setattr(plan, "terminal_width", lambda stream: 60)
    plan_command(config, None, 3, as_json=False)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == lines[:3] and len(shown) > len(lines)  # the table is as it was
    assert all(len(line) <= 60 or str(tmp_path) in line for line in shown[3:])  # words are whole


def test_all_bad_sources_are_named(tmp_path: Path) -> None:
    config = settings(tmp_path, [source(tmp_path, "a", 0), source(tmp_path, "b", 3, text_field="no")])
    with pytest.raises(UserError) as caught:
        plan_build(config)
    assert "source a" in str(caught.value)
    assert "source b" in str(caught.value)
