"""A project with pairs of answers and a model to compare with, which take a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.program import make_project

PAIRS = (
    "data.sources=[{type: jsonl, path: pairs.jsonl, record: preference}]",
    "data.validation_fraction=0.1",
    "train.objective=dpo",
    "train.dpo={beta: 0.3, reference: runs/base}",
    "train.max_steps=6",
    "train.global_batch_size=6",
    "model.hidden_dropout=0",
    "checkpoint.every_steps=3",
)
"""Settings of training on the pairs, on top of tiny.yaml."""
WORDS = ("model", "row", "tokens", "token", "other", "reads", "learns", "follows")


def write_pairs(path: Path, count: int = 40) -> None:
    """Pairs of unlike length: the chosen answer is polite."""
    with path.open("w") as file:
        for number in range(count):
            word = WORDS[number % len(WORDS)]
            record = {"prompt": f"say {word} {number}:", "chosen": f" {word} please", "rejected": f" {word}"}
            file.write(json.dumps(record) + "\n")


def make_pairs_project(folder: Path) -> None:
    """tiny.yaml, pairs.jsonl, and the run `base` of the same model."""
    from llmkit.cli import main

    make_project(folder)
    write_pairs(folder / "pairs.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", "run.name=base", "train.max_steps=3"]) == 0
