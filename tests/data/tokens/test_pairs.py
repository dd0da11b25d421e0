"""Pairs on their way from records to batches: each sequence as if it were a row of its own."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.batch import IGNORE, Batch, Rows
from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.eval_loader import EvalLoader
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.data.sources.records import Preference, PromptCompletion, Skipped
from llmkit.data.tokens.encode import Encoded, RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer, with_template

LENGTH, END = 24, 256
COUNT = 45


def pairs_config(folder: Path, records: list[dict[str, Any]], **changes: Any) -> schema.Data:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"),
        sources=[schema.Source(type="jsonl", path=str(path), record="preference")],
        sequence_length=LENGTH,
        validation_fraction=0.1,
        cache_dir=str(folder / "cache"),
    ).model_copy(update=changes)


def numbered(count: int = COUNT) -> list[dict[str, Any]]:
    return [
        {"prompt": f"ask {n}:", "chosen": f" yes {n}", "rejected": " no" * (n % 4 + 1)} for n in range(count)
    ]


def sequences(batch: Batch, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Text and learned text of each sequence; "|" is the end-of-text."""

    def text(ids: torch.Tensor) -> str:
        return "".join("|" if one == END else tokenizer.decode([one]) for one in ids.tolist())

    rows = zip(batch.tokens, batch.labels, strict=True)
    return [(text(tokens), text(labels[labels != IGNORE])) for tokens, labels in rows]


def steps(prepared: PreparedData, config: schema.Data, rank: int = 0, world: int = 1) -> TrainLoader:
    return TrainLoader(prepared, config, 3, 6, 2, rank=rank, world_size=world)


def test_both_sequences_begin_and_end_as_a_document_does(tmp_path: Path) -> None:
    config = pairs_config(tmp_path, numbered())
    prepared = prepare(config, lambda line: None)
    seen: Counter[str] = Counter()
    with steps(prepared, config) as loader:
        for _ in range(7):  # 42 pairs: once all that is not held out, and the first again
            step = next(loader)
            assert step.targets == step.own_targets == 6 and len(step.micro_batches) == 3
            for micro in step.micro_batches:
                batch = micro.to(torch.device("cpu"))
                assert batch.tokens.shape == (4, LENGTH)
                found = sequences(batch, prepared.tokenizer)
                for (chosen, learned), (rejected, other) in zip(found[::2], found[1::2], strict=True):
                    number = int(chosen.split(":")[0].removeprefix("|ask "))
                    assert chosen == f"|ask {number}: yes {number}".ljust(LENGTH, "|")
                    assert learned == f" yes {number}|"
                    assert rejected == f"|ask {number}:{' no' * (number % 4 + 1)}".ljust(LENGTH, "|")
                    assert other == " no" * (number % 4 + 1) + "|"
                    seen[str(number)] += 1
    assert len(seen) == COUNT - 5 and set(seen.values()) == {1, 2}
    assert prepared.heldout_targets == 5


def test_ranks_get_the_same_pairs_and_the_log_probabilities_that_belong_to_them(tmp_path: Path) -> None:
    config = pairs_config(tmp_path, numbered())
    prepared = prepare(config, lambda line: None)
    known = with_numbers(prepared)

    def rows_of(loader: TrainLoader, count: int) -> list[tuple[str, float, float]]:
        with loader:
            micros: list[Rows] = [micro for _ in range(count) for micro in next(loader).micro_batches]
        return [row for micro in micros for row in described(micro, known.tokenizer)]

    alone = rows_of(steps(known, config), 9)
    assert all(number == text for text, number, _ in alone) and all(b == -a for _, a, b in alone)
    parts = [rows_of(steps(known, config, rank, 4), 9) for rank in range(4)]
    assert Counter(alone) == Counter(row for part in parts for row in part)
    again = steps(known, config)
    for _ in range(4):
        next(again)
    state = again.state_dict()
    again.close()
    resumed = steps(known, config)
    resumed.load_state_dict(state, 4)
    assert rows_of(resumed, 5) == alone[24:]


def with_numbers(prepared: PreparedData) -> PreparedData:
    """The data with the number of each pair, and its negative, as log-probabilities."""

    def numbers(reader: Any) -> np.ndarray:
        texts = [prepared.tokenizer.decode(reader.document(k)) for k in range(reader.documents)]
        found = [float(text.split(":")[0].removeprefix("ask ")) for text in texts]
        return np.array([[one, -one] for one in found], dtype=np.float32)

    sources = tuple(
        dataclasses.replace(one, reference=numbers(one.stored), heldout_reference=numbers(one.heldout))
        for one in prepared.sources
    )
    return dataclasses.replace(prepared, sources=sources)


def described(micro: Rows, tokenizer: Tokenizer) -> list[tuple[Any, float, float]]:
    """(number in the text, the two log-probabilities) of each pair that does not only fill."""
    batch = micro.to(torch.device("cpu"))
    assert batch.reference is not None
    texts = [text for text, learned in sequences(batch, tokenizer)[::2]]
    pairs = zip(texts, batch.reference.tolist(), strict=True)
    return [(float(text.split(":")[0][5:]), *known) for text, known in pairs if ":" in text]


def test_held_out_pairs_are_read_once(tmp_path: Path) -> None:
    known = with_numbers(prepare(pairs_config(tmp_path, numbered()), lambda line: None))
    heldout = [EvalLoader(known, 3, rank, 2) for rank in range(2)]
    found = [row for one in heldout for micro in one for row in described(micro, known.tokenizer)]
    assert len(found) == heldout[0].targets == 5
    assert all(text == number for text, number, _ in found)
    assert heldout[0].text_bytes == 0


def test_a_pair_that_is_too_long_is_left_out_and_counted(tmp_path: Path) -> None:
    long = {"prompt": "x" * 10, "chosen": "y" * 14, "rejected": "n"}
    fits = long | {"chosen": "y" * 13}
    told: list[str] = []
    prepared = prepare(pairs_config(tmp_path, [long, fits, fits, *numbered(20)]), told.append)
    assert prepared.sources[0].left_out == {"longer than data.sequence_length": 1}
    [counted] = [line for line in told if "left out" in line]
    assert "1 longer than data.sequence_length (of 23)" in counted
    with pytest.raises(UserError, match="takes 25 tokens, more than 24"):
        prepare(
            pairs_config(tmp_path, [fits, long], errors="raise", validation_fraction=0.0), lambda line: None
        )


def test_the_last_token_of_a_full_sequence_is_learned_as_the_end() -> None:
    encoder = RecordEncoder(bytes_tokenizer("<end>"), pair_length=8)
    [full] = encoder.encode([Preference(PromptCompletion("ab", "cdefg"), PromptCompletion("ab", "hijkl"))])
    assert isinstance(full, Encoded) and full.tokens.size == 15
    assert (
        full.targets is not None
        and full.targets.tolist() == [False] * 2 + [True] * 6 + [False] * 2 + [True] * 5
    )
    assert full.end_is_target and full.tokens[7] == END
    [long] = encoder.encode([Preference(PromptCompletion("ab", "c"), PromptCompletion("ab", "hijklm"))])
    assert (
        isinstance(long, Skipped) and long.detail == "the prompt with an answer takes 9 tokens, more than 8"
    )


def test_other_lengths_and_templates_are_other_tokens(tmp_path: Path) -> None:
    made = bytes_tokenizer("<end>")
    keys = {
        RecordEncoder(with_template(made, template), pair_length=n).key_of("preference")
        for template in "ab"
        for n in (8, 9)
    }
    assert len(keys) == 4
