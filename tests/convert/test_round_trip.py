"""From Hugging Face's format through training on four processes and back: transformers computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmkit.cli import main
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import CASES, qwen2_tokenizer, save
from tests.program import make_project
from tests.ranks import free_ports, run_ranks

SETTINGS = """\
train: {max_steps: 5, global_batch_size: 4, precision: fp32}
data:
  sources: [{type: text, path: corpus}]
  sequence_length: 32
optimizer: {learning_rate: 0.01, eps: 1.0e-5}
schedule: {name: constant, warmup_steps: 1}
parallel: {zero_stage: 3, tensor_parallel_size: 2}
kernels: {compile: false}
monitor: {wandb: {mode: disabled}}
"""
OFTEN = ("gpt2", "gemma3")
"""What is the most unlike our own format, and has the most settings."""


def cases(names):
    """Trains all of them under ZeRO-3 and tensor parallelism, five steps each, in one launch."""
    runs = [
        {
            "name": name, "file": "tuned.yaml", "hook": None, "seconds": [1.0] * 4,
            "overrides": [f"train.init_from=imported/{name}"],
        }
        for name in names
    ]  # fmt: skip
    return run_ranks(
        4, "tests.loop.rank_cases:runs", joined=False,
        folder=str(Path.cwd()), ports=free_ports(len(runs)), cases=runs,
    )  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(OFTEN, id="often"),
        pytest.param(
            tuple(name for name in CASES if name not in OFTEN), id="others", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_what_was_trained_in_pieces_is_what_transformers_computes(names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path)
    Path("tuned.yaml").write_text(SETTINGS)
    even = {"num_attention_heads": 6, "num_key_value_heads": 6}  # five heads cannot be shared by two ranks
    for name in names:
        save(name, tmp_path / "hub" / name, vocab_size=259, **(even if name == "qwen3" else {}))
        tokenizer = qwen2_tokenizer() if name.startswith("qwen2") else bytes_tokenizer("<|end|>")
        tokenizer.save(tmp_path / "hub" / name)
        assert main(["import", f"hub/{name}", f"imported/{name}"]) == 0
    outcome = cases(names)
    assert [[found["code"] for found in rank] for rank in outcome] == [[0] * len(names)] * 4, outcome
    for name in names:
        capsys.readouterr()
        assert main(["export", f"runs/{name}", f"out/{name}"]) == 0, name
        assert "relative difference" in capsys.readouterr().out
        before = load_file(f"hub/{name}/model.safetensors")
        after = load_file(f"out/{name}/model.safetensors")
        assert before.keys() == after.keys()
        assert not [each for each in before if torch.equal(before[each], after[each])], name
