"""A small, realistic configuration that the tests bend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.errors import UserError

BASE = """\
run:
  name: demo
  seed: 1
model:
  hidden_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
data:
  tokenizer:
    type: bpe
    vocab_size: 512
  sources:
    - type: stdlib
    - type: text
      path: books/*.txt
      weight: 2
  sequence_length: 128
train:
  max_steps: 200
  global_batch_size: 16
  micro_batch_size: 4
optimizer:
  learning_rate: 1e-3
  betas: [0.9, 0.99]
schedule:
  name: cosine
  warmup_steps: 20
evaluate:
  every_steps: 50
monitor:
  wandb:
    mode: disabled
"""


@pytest.fixture
def base() -> str:
    """The text of a valid configuration; its first line is line 1."""
    return BASE


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file below the current (temporary) folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str | bytes = BASE, name: str = "c.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return name

    return write_file


@pytest.fixture
def refused(write: Callable[..., str]) -> Callable[..., str]:
    """Loads a text that must be refused; returns the message."""

    def message(text: str | bytes = BASE, *overrides: str) -> str:
        with pytest.raises(UserError) as refusal:
            load(write(text), overrides)
        return str(refusal.value)

    return message


@pytest.fixture
def refused_for_one(refused: Callable[..., str]) -> Callable[[list[str], str], None]:
    """Checks that these overrides of the base are refused for a single mistake, in these words."""

    def check(overrides: list[str], what: str) -> None:
        message = refused(BASE, *overrides)
        assert "1 mistake" in message
        assert what in message

    return check
