"""The example of an own model: trained, resumed, evaluated, sampled from."""

from __future__ import annotations

import json
import re

import pytest

from llmkit.cli import main
from tests.examples.project import project, rows
from tests.program import train

MODEL = """\
model:
  type: convolution
  width: 24
"""


@pytest.fixture
def folder(tmp_path):
    with project(tmp_path, "own_model", MODEL, drop=("model",)) as folder:
        yield folder


def test_it_trains_resumes_as_if_it_had_not_stopped_and_is_used(folder, capsys):
    assert train() == 0
    assert train("run.name=twice", "train.max_steps=7", "schedule.steps=12") == 0
    assert train("run.name=twice", "schedule.steps=12") == 0
    assert train("run.name=straight", "schedule.steps=12") == 0
    losses = rows(folder, run="straight")
    assert rows(folder, run="twice") == losses and losses[-1] < losses[0] - 0.3
    capsys.readouterr()
    assert train("run.name=auto", "kernels.compile=auto", "train.max_steps=1") == 0
    assert "no torch.compile (model type convolution does not support it)" in capsys.readouterr().out
    assert main(["evaluate", "runs/tiny"]) == 0
    shown = capsys.readouterr().out
    assert f"{rows(folder, 'eval_loss')[-1]:.4f} nats a token" in shown
    assert main(["generate", "runs/tiny", "--prompt", "the model", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("the model")


def test_another_run_starts_from_its_weights_and_takes_model_and_plugin_from_there(folder, capsys):
    assert train() == 0
    text = (folder / "tiny.yaml").read_text().replace("plugins: [own_model]\n", "").replace(MODEL, "")
    text = text.replace("train:\n", "train:\n  init_from: runs/tiny\n").replace("name: tiny", "name: tuned")
    (folder / "tuned.yaml").write_text(text.replace("type: bytes", "type: init_from"))
    assert main(["train", "tuned.yaml", "train.max_steps=1"]) == 0
    first, again = rows(folder)[0], rows(folder, run="tuned")[0]
    assert again < first - 0.3
    capsys.readouterr()
    assert main(["train", "tuned.yaml", "run.name=other", "model.width=32"]) == 2
    assert re.search(
        r"holds another model: embedding.weight \(257, 24\) -> \(257, 32\)", capsys.readouterr().err
    )


def test_its_settings_are_checked_and_documented_like_ours(folder, capsys):
    assert main(["config", "tiny.yaml", "model.widht=3", "model.layers=0", "model.hidden_size=9"]) == 2
    problem = capsys.readouterr().err
    assert "command line: model.widht=3: model.widht is an unknown key; did you mean model.width?" in problem
    assert "model.layers must be a whole number of at least 1; it is 0" in problem
    assert "model.hidden_size is an unknown key" in problem and "known here: " in problem
    assert main(["config", "tiny.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "type: convolution" in shown and "width: 24" in shown and "layers: 2" in shown
    parameters = 24 * 257 * 2 + 2 * (2 * 24 + 5 * 24 + 24 + 24 * 72 * 2 + 72 + 24)
    assert f"{parameters:,}" in shown
    assert main(["config", "tiny.yaml", "--keys", "model"]) == 0
    shown = capsys.readouterr().out
    assert (
        "model.reach\n    a whole number of at least 1 (default: 5)\n    Positions that a block sees" in shown
    )
    assert "model.rope_theta" not in shown


def test_what_it_cannot_do_is_refused_before_anything_is_built(folder, capsys):
    for override, problem in (
        (
            "parallel.tensor_parallel_size=2",
            "parallel.tensor_parallel_size 2 (command line) does not go with model.type",
        ),
        ("parallel.activation_checkpointing=full", "has no effect on model.type"),
        ("data.document_masks=true", "data.document_masks true (command line) has no effect on model.type"),
        ("kernels.compile=true", "has no effect on model.type"),
        ("train.z_loss=1e-4", "has no effect on model.type"),
        ("parallel={tensor_parallel_size: 2, sequence_parallel: true}", "true (command line) has no effect"),
    ):
        assert main(["config", "tiny.yaml", override]) == 2
        assert problem in capsys.readouterr().err


def test_another_model_does_not_go_on_with_its_checkpoint(folder, capsys):
    assert train("train.max_steps=2") == 0
    assert train("model.width=16") == 2
    assert "holds another model: embedding.weight (257, 24) -> (257, 16), " in capsys.readouterr().err


def test_the_plugin_is_recorded(folder):
    assert train("train.max_steps=1") == 0
    manifest = json.loads((folder / "runs/tiny/manifest.json").read_text())
    (digest,) = [value for name, value in manifest["plugins"].items() if name == "plugin own_model"]
    assert len(digest) == 64
