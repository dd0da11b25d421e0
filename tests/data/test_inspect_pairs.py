"""`llmkit data inspect` of pairs."""

from __future__ import annotations

import json
from pathlib import Path

from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.inspect import inspect
from llmkit.data.inspect_rows import Rows, row_lines


def test_both_answers_are_shown_with_what_is_learned(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    answers = [("yes", "no"), ("certainly", "never")]
    lines = [{"prompt": f"ask {k}: ", "chosen": a, "rejected": b} for k, (a, b) in enumerate(answers)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0] | {"prompt": "x" * 90}]))
    data = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[schema.Source(type="jsonl", path=str(path), record="preference")],
        sequence_length=24,
        validation_fraction=0.0,
        cache_dir=str(tmp_path / "cache"),
    )
    config = schema.Config(data=data)
    shown = "\n".join(inspect(config, prepare(data, lambda line: None), 2, color=False))
    assert "  2 pairs of sequences of up to 24 tokens; counted: all" in shown
    assert "    chosen: median 14 tokens, longest 17; of the answer median 7, longest 10" in shown
    assert "    rejected: median 11 tokens, longest 13; of the answer median 4, longest 6" in shown
    assert "jsonl-0: 2 rows" in shown and "1 longer than data.sequence_length" in shown
    end = "──── <|endoftext|> ────"
    off = end.replace("<|endoftext|>", "⟦<|endoftext|>⟧")
    for number, (chosen, rejected) in enumerate(answers):
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            assert f", {side} ===\n{off}\n⟦ask {number}: ⟧{answer}\n{end}" in shown


def test_the_pairs_of_a_step_are_shown_with_their_documents(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = ({"prompt": f"ask {k}: ", "chosen": "y" * (k + 1), "rejected": "no"} for k in range(5))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[schema.Source(type="jsonl", path=str(path), record="preference")],
        sequence_length=24,
        validation_fraction=0.0,
        cache_dir=str(tmp_path / "cache"),
    )
    config = schema.Config(data=data, train=schema.Train(global_batch_size=4))
    prepared = prepare(data, lambda line: None)
    found = Rows(config, prepared, print).of_step(2)
    assert [(row.position, row.epoch) for row in found] == [(4, 0), (5, 1), (6, 1), (7, 1)]
    for row in found:
        (document,) = row.documents
        assert document.number is not None and row.row % 5 == document.number - 1
        assert (document.start, document.stop, document.offset) == (1, 49, 0)
    shown = list(row_lines(found, prepared, color=False))
    assert [line for line in shown if line.startswith("---")] == ["--- chosen ---", "--- rejected ---"] * 4
    asked = [line for line in "\n".join(shown).splitlines() if line.startswith("⟦ask ")]
    texts = [prepared.tokenizer.decode(row.tokens[1:8]) for row in found]
    assert [line[1:8] for line in asked[::2]] == texts
    assert all(line.endswith("⟧no") for line in asked[1::2])
    assert all(set(line[9:].lstrip("⟧ ")) == {"y"} for line in asked[::2])
