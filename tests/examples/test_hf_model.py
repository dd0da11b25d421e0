"""The example of a model of transformers: its loss, training, evaluation and sampling."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit import Batch, Run
from llmkit.cli import main
from tests.examples.project import project, rows, write_config
from tests.program import train

MODEL = """\
model:
  type: hf
  architecture: llama
  settings: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 48}
"""


@pytest.fixture
def folder(tmp_path):
    with project(tmp_path, "hf_model", MODEL, drop=("model",)) as folder:
        yield folder


def test_it_trains_and_is_used(folder, capsys):
    assert train("optimizer.name=muon") == 0
    losses, run = rows(folder), Run("runs/tiny")
    assert losses[-1] < losses[0] - 0.5 and run.done
    assert run.evaluate().loss == pytest.approx(rows(folder, "eval_loss")[-1], rel=1e-5)
    assert run.generate("the model", 4, temperature=0.0).startswith("the model")
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257, max_position_embeddings=32, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=48,
        )
    )  # fmt: skip
    ours = run.model(device="cpu", precision="fp32")
    theirs.load_state_dict(ours.model.state_dict())
    tokens = torch.arange(20)[None]
    loss = theirs.eval()(tokens, labels=tokens).loss  # transformers shifts the labels itself
    labels = torch.cat([tokens[:, 1:], torch.tensor([[-100]])], 1)
    found = ours(Batch(tokens, labels))
    assert float(found.nats.sum() / found.targets.sum()) == pytest.approx(loss.item(), rel=1e-5)


def test_a_missing_setting_is_named(folder, capsys):
    write_config(folder, "plugins: [hf_model]\nmodel: {type: hf}\n", drop=("model",))
    assert main(["config", "tiny.yaml"]) == 2
    assert "model.architecture is required: text" in capsys.readouterr().err
