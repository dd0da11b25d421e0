"""Mistakes that people make in a configuration: each is refused on the login node, by its line, at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.cli import main

CONFIG = """\
run:
  name: cluster
model:
  hidden_size: 256
  num_hidden_layers: 4
  num_attention_heads: 8
  num_key_value_heads: 4
  mlp: swiglu
data:
  sequence_length: 512
  tokenizer:
    type: bpe
    vocab_size: 4096
  sources:
    - name: books
      type: text
      path: books/*.txt
      weight: 2
    - name: web
      type: jsonl
      path: web-*.jsonl
      live: true
train:
  max_steps: 1000
  global_batch_size: 64
  micro_batch_size: 4
  precision: bf16
optimizer:
  name: adamw
  learning_rate: 0.0006
  betas: [0.9, 0.95]
schedule:
  name: wsd
  warmup_steps: 100
parallel:
  world_size: 16
  zero_stage: 1
  tensor_parallel_size: 2
checkpoint:
  every_steps: 100
evaluate:
  every_steps: 50
monitor:
  wandb:
    project: cluster
    mode: online
"""
MISTAKES = [
    # (what stands in the file, what is written instead, what the message says)
    # Names
    ("max_steps: 1000", "max_step: 1000", "did you mean train.max_steps?"),
    ("hidden_size: 256", "hiden_size: 256", "did you mean model.hidden_size?"),
    ("num_hidden_layers: 4", "num_layers: 4", "did you mean model.num_hidden_layers?"),
    ("num_attention_heads: 8", "num_heads: 8", "did you mean model.num_attention_heads?"),
    ("optimizer:", "optimiser:", "did you mean optimizer?"),
    ("learning_rate: 0.0006", "lr: 0.0006", "did you mean optimizer.learning_rate?"),
    ("schedule:", "scheduler:", "did you mean schedule?"),
    ("warmup_steps: 100", "warmup: 100", "did you mean schedule.warmup_steps?"),
    ("global_batch_size: 64", "batch_size: 64", "did you mean train.global_batch_size?"),
    ("micro_batch_size: 4", "micro_batchsize: 4", "did you mean train.micro_batch_size?"),
    ("zero_stage: 1", "zero: 1", "did you mean parallel.zero_stage?"),
    ("tensor_parallel_size: 2", "tensor_parallel: 2", "did you mean parallel.tensor_parallel_size?"),
    ("project: cluster", "projekt: cluster", "did you mean monitor.wandb.project?"),
    ("tokenizer:", "tokeniser:", "did you mean data.tokenizer?"),
    ("sequence_length: 512", "seq_length: 512", "did you mean data.sequence_length?"),
    ("parallel:", "paralel:", "did you mean parallel?"),
    ("checkpoint:", "checkpoints:", "did you mean checkpoint?"),
    ("weight: 2", "wieght: 2", "did you mean data.sources.0.weight?"),
    ("  sources:", "  source:", "did you mean data.sources?"),
    # Kinds
    ("max_steps: 1000", "max_steps: many", "train.max_steps"),
    ("max_steps: 1000", "max_steps: 1000.5", "train.max_steps"),
    ("max_steps: 1000", "max_steps: 1,000", "train.max_steps"),
    ("learning_rate: 0.0006", 'learning_rate: "6e-4"', "optimizer.learning_rate"),
    ("learning_rate: 0.0006", "learning_rate: 0,0006", "optimizer.learning_rate"),
    ("betas: [0.9, 0.95]", "betas: 0.9", "optimizer.betas"),
    ("betas: [0.9, 0.95]", "betas: [0.9]", "optimizer.betas"),
    ("hidden_size: 256", 'hidden_size: "256"', "model.hidden_size"),
    ("micro_batch_size: 4", "micro_batch_size: 4.5", "train.micro_batch_size"),
    ("live: true", "live: 1", "data.sources.1.live"),
    ("live: true", 'live: "true"', "data.sources.1.live"),
    ("name: cluster", "name: [cluster]", "run.name"),
    ("precision: bf16", "precision: fp16", "train.precision"),
    ("precision: bf16", "precision: bf-16", "train.precision"),
    ("mlp: swiglu", "mlp: swi-glu", "model.mlp"),
    ("name: adamw", "name: adam", "optimizer.name"),
    ("name: wsd", "name: cosin", "schedule.name"),
    ("type: text", "type: txt", "data.sources.0.type"),
    ("type: bpe", "type: bpee", "data.tokenizer.type"),
    ("mode: online", "mode: sometimes", "monitor.wandb.mode"),
    ("path: books/*.txt", "path: null", "data.sources.0.path"),
    # Ranges
    ("max_steps: 1000", "max_steps: 0", "train.max_steps"),
    ("max_steps: 1000", "max_steps: -5", "train.max_steps"),
    ("learning_rate: 0.0006", "learning_rate: 0", "optimizer.learning_rate"),
    ("learning_rate: 0.0006", "learning_rate: -0.0006", "optimizer.learning_rate"),
    ("learning_rate: 0.0006", "learning_rate: 600", "optimizer.learning_rate"),
    ("learning_rate: 0.0006", "learning_rate: .nan", "optimizer.learning_rate"),
    ("betas: [0.9, 0.95]", "betas: [0.9, 1.0]", "optimizer.betas"),
    ("weight: 2", "weight: -2", "data.sources.0.weight"),
    ("zero_stage: 1", "zero_stage: 4", "parallel.zero_stage"),
    ("tensor_parallel_size: 2", "tensor_parallel_size: 0", "parallel.tensor_parallel_size"),
    ("vocab_size: 4096", "vocab_size: 100", "data.tokenizer.vocab_size"),
    ("sequence_length: 512", "sequence_length: 1", "data.sequence_length"),
    ("warmup_steps: 100", "warmup_steps: -1", "schedule.warmup_steps"),
    ("name: cluster", "name: ../../etc", "run.name"),
    ("name: cluster", "name: a b", "run.name"),
    # Settings that do not go together
    ("num_attention_heads: 8", "num_attention_heads: 7", "model.num_attention_heads 7"),
    ("num_key_value_heads: 4", "num_key_value_heads: 3", "model.num_key_value_heads 3"),
    ("tensor_parallel_size: 2", "tensor_parallel_size: 3", "parallel.tensor_parallel_size 3"),
    ("tensor_parallel_size: 2", "tensor_parallel_size: 16", "parallel.tensor_parallel_size 16"),
    ("micro_batch_size: 4", "micro_batch_size: 3", "train.micro_batch_size 3"),
    ("global_batch_size: 64", "global_batch_size: 6", "train.global_batch_size 6"),
    ("world_size: 16", "world_size: 15", "parallel.world_size 15"),
    ("zero_stage: 1", "zero_stage: 0\n  offload: cpu", "parallel.offload"),
    ("type: bpe", "type: bytes", "data.tokenizer.vocab_size 4096"),
    ("name: web", "name: books", 'two sources are called "books"'),
    ("path: web-*.jsonl", "path: web-*.jsonl\n      separator: x", "data.sources.1.separator"),
    ("sequence_length: 512", "sequence_length: 512\n  validation_fraction: 0", "data.validation_fraction"),
    # YAML
    ("max_steps: 1000", "max_steps: 1000\n  max_steps: 2000", "max_steps"),
    ("  hidden_size: 256", "\thidden_size: 256", "tab"),
    ("betas: [0.9, 0.95]", "betas: [0.9, 0.95", ""),
    ("  warmup_steps: 100", " warmup_steps: 100", ""),
    ("name: wsd", "name: wsd: cosine", ""),
]


def changed_line(text: str) -> int:
    """The first line, from 1, in which the file differs from the one without a mistake."""
    pairs = zip(text.splitlines(), CONFIG.splitlines(), strict=False)
    return next(number for number, (new, old) in enumerate(pairs, start=1) if new != old)


def test_the_file_without_a_mistake_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG)
    assert main(["config", "c.yaml"]) == 0


@pytest.mark.drill(
    "D35",
    injection=f"{len(MISTAKES)} mistakes in a file: names, kinds, ranges, what does not go together, YAML",
    expected="`llmkit config` on a login node refuses each: its line, and what is meant",
)
def test_each_mistake_is_refused_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    measured: Callable[[str, float | str, str], None],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    seconds, unseen = [], []
    for old, new, says in MISTAKES:
        assert CONFIG.count(f" {old}\n") + CONFIG.count(f"\n{old}\n") >= 1, old
        text = CONFIG.replace(old, new, 1)
        Path("c.yaml").write_text(text)
        begun = time.perf_counter()
        code = main(["config", "c.yaml"])
        seconds.append(time.perf_counter() - begun)
        message = capsys.readouterr().err
        line = changed_line(text)
        named = any(f"c.yaml:{number}" in message for number in (line, line + 1))
        if code != 2 or not named or says not in message or "Traceback" in message:
            unseen.append(f"{old!r} -> {new!r} (line {line}): exit code {code}: {message}")
    assert not unseen, "\n".join(unseen)
    measured("refused", len(MISTAKES), f"of {len(MISTAKES)}")
    measured("the slowest took", max(seconds), "s")
