"""`llmkit data inspect` of pairs."""

from __future__ import annotations

import json
from pathlib import Path

from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.inspect import inspect


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
