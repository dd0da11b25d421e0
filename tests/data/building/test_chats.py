"""Chats on their way into shards, under templates in the shape of published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.prepared import PreparedData
from llmkit.data.sources.records import SPELLED_END

END = 256
ENDING = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def chats(folder: Path, template: str, **changes: Any) -> tuple[PreparedData, list[str]]:
    """What is built of 40 chats, and what was told of it."""
    (folder / "chat.jinja").write_text(template)
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(40):
            messages = [{"role": role, "content": f"{role} {number}"} for role in ("user", "assistant")]
            file.write(json.dumps({"messages": messages}) + "\n")
    source = schema.Source(type="jsonl", path=str(folder / "chats.jsonl"), record="chat", **changes)
    config = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes", chat_template=str(folder / "chat.jinja")),
        sources=[source],
        sequence_length=16,
        cache_dir=str(folder / "cache"),
        document_masks=True,
    )
    told: list[str] = []
    return prepare(config, told.append), told


def test_a_template_that_ends_the_answer_gives_one_end_of_text_a_chat(tmp_path: Path) -> None:
    prepared, told = chats(tmp_path, ENDING.replace("eos_token", "eos_token + '\\n'"))
    for reader in (prepared.sources[0].stored, next(iter(prepared.heldout.values()))):
        assert reader is not None
        tokens = reader.read(0, reader.tokens)
        ends = np.flatnonzero(tokens == END)
        assert len(ends) == reader.documents + 1
        assert np.diff(ends).min() > 20
        assert reader.read_targets(1, reader.tokens)[ends[1:] - 1].all()  # type: ignore[index]
    held = next(iter(prepared.heldout.values()))
    assert held.documents == 2 and held.index.text_bytes == sum(
        len(f"assistant {text.rpartition(' ')[2]}")
        for text in (prepared.tokenizer.decode(held.document(number)) for number in range(2))
    )
    [warning] = [line for line in told if "WARNING" in line]
    assert "writes end-of-text (<|endoftext|>) between turns, and with data.document_masks" in warning


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("record", ["text", "prompt_completion", "chat"])
def test_text_that_spells_end_of_text_at_its_end_is_told(tmp_path: Path, record: str, live: bool) -> None:
    """It is no end of a document, and the model would learn to write it before each."""
    for end, count in (("<|endoftext|>\n", 40), (".", 0)):
        messages = [{"role": "user", "content": "why"}, {"role": "assistant", "content": f"so{end}"}]
        line = json.dumps({"text": f"a{end}", "prompt": "a", "completion": f"b{end}", "messages": messages})
        (tmp_path / "records.jsonl").write_text((line + "\n") * 40)
        path = str(tmp_path / "records.jsonl")
        source = schema.Source(type="jsonl", path=path, record=record, live=live)  # type: ignore[arg-type]
        config = schema.Data(
            tokenizer=schema.Tokenizer(type="bytes"), sources=[source], cache_dir=str(tmp_path / "cache"),
            sequence_length=8,
        )  # fmt: skip
        told: list[str] = []
        counts = prepare(config, told.append).sources[0].left_out
        assert counts.get(SPELLED_END, 0) == (min(count, 2) if live else count)
        assert any(SPELLED_END in line for line in told) == (count > 0)


@pytest.mark.parametrize("live", [False, True])
def test_the_template_is_a_part_of_what_a_source_of_chats_is_known_by(tmp_path: Path, live: bool) -> None:
    prints = [
        chats(tmp_path, template, live=live)[0].fingerprint.sources[0]
        for template in (ENDING, ENDING, ENDING.replace("[{{", "({{"))
    ]
    assert prints[0] == prints[1]
    assert prints[0].digest != prints[2].digest
    assert len({one.template for one in prints}) == 2
