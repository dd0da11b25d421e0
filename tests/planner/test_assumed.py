"""What a plan assumes where a file names a model and nothing else, and what it leaves as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.api import load
from llmkit.errors import UserError
from llmkit.planner.assumed import TEXT, TOKENIZER, open_subject

ROOT = Path(__file__).parents[2]
LLAMA = str(ROOT / "configs/models/llama-3.1-8b.yaml")


def test_a_model_alone_gets_rows_and_a_length():
    subject = open_subject(load, LLAMA, [], None)
    assert subject.assumed == {
        "data.sources": TEXT, "data.tokenizer": TOKENIZER, "data.sequence_length": 8192,
        "train.max_steps": 38_292, "train.global_batch_size": 512,
    }  # fmt: skip
    config = subject.loaded.config
    tokens = config.train.max_steps * config.train.global_batch_size * config.data.sequence_length
    assert tokens == pytest.approx(20 * 8_030_261_248, rel=1e-4)
    assert subject.loaded.origins["data.sequence_length"] == "assumed"
    assert subject.vocab_size == 128_256


def test_what_is_given_is_kept():
    given = ["train.global_batch_size=1024", "data.sequence_length=4096", "data.tokenizer.type=bytes"]
    subject = open_subject(load, LLAMA, given, 1e9)
    assert subject.assumed == {"data.sources": TEXT, "train.max_steps": 239}
    assert subject.loaded.config.train.global_batch_size == 1024


def test_a_complete_configuration_is_as_it_is():
    path = str(ROOT / "configs/recipes/llama-3.1-8b.yaml")
    subject = open_subject(load, path, [], 1e12)
    assert not subject.assumed and subject.loaded.origins == load(path).origins


def test_only_the_length_may_be_missing(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {sources: [{type: stdlib}]}\n")
    assert list(open_subject(load, str(file), [], None).assumed) == ["train.max_steps"]
    timed = open_subject(load, str(file), ["train.max_minutes=5"], None)
    assert not timed.assumed and timed.loaded.config.train.max_steps is None


def test_mistakes_are_told_as_ever(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {hiden_size: 64}\n")
    with pytest.raises(UserError, match=r"run.yaml:1: .*hiden_size.*hidden_size"):
        open_subject(load, str(file), [], None)
    with pytest.raises(UserError, match="say how many tokens it has"):
        open_subject(load, str(ROOT / "configs/recipes/gpt2-124m.yaml"), ["model.vocab_size=auto"], None)
