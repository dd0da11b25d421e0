"""The example of an own form of an operator: the same function, refused where it cannot serve, recorded."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from llmkit.cli import main
from llmkit.config.load import load
from llmkit.kernels.norm import rms_norm
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.gpt import GPT
from tests.examples.project import project, rows
from tests.kernels.float64 import check
from tests.program import train
from tests.shapes import LLAMA_STYLE

SETTINGS = "kernels: {compile: false, operators: {norm: by-hand}}\n"


@pytest.fixture
def folder(tmp_path):
    with project(tmp_path, "own_operator", SETTINGS, drop=("kernels",)) as folder:
        yield folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_contract(folder, dtype):
    load("tiny.yaml")
    operators = Operators.of({"norm": "by-hand"})
    assert operators.rms_norm is not TORCH.rms_norm and operators.layer_norm is TORCH.layer_norm
    x, weight = torch.randn(3, 5, 31, dtype=dtype), torch.randn(31, dtype=dtype)

    def exact(x, weight, eps):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    check(operators.rms_norm, exact, (x.requires_grad_(), weight.requires_grad_(), 1e-5))


def test_a_run_with_it_trains_alike_and_records_it(folder, capsys):
    assert train("train.max_steps=4") == 0
    assert "by-hand" in capsys.readouterr().out
    assert train("train.max_steps=4", "run.name=plain", "kernels.operators.norm=torch") == 0
    assert rows(folder) == pytest.approx(rows(folder, run="plain"), rel=1e-5)
    manifest = json.loads((folder / "runs/tiny/manifest.json").read_text())
    chosen = manifest["kernels"]["operators"]["norm"]
    assert chosen == {"form": "by-hand", "reason": "as given, own_operator.ByHand"}
    assert "operator by-hand" in manifest["plugins"]


def test_what_it_cannot_serve_and_what_it_is_not_are_refused_together(folder, capsys):
    overrides = ["model.norm=layernorm", "kernels.operators.rotation=by-hand", "kernels.operators.linear=x"]
    assert main(["config", "tiny.yaml", *overrides]) == 2
    problem = capsys.readouterr().err
    assert "3 mistakes" in problem
    assert 'kernels.operators.norm "by-hand" (tiny.yaml:' in problem and "it has no layer norm" in problem
    assert "own_operator.ByHand is a form of 'norm' (its attribute `operator`), not of rotation" in problem
    assert re.search(r"linear has no form of this name; it has [\w, ]+, and what plugins register", problem)


def test_a_model_uses_it_throughout(folder, monkeypatch):
    load("tiny.yaml")
    operators, calls = Operators.of({"norm": "by-hand"}), []
    counted = replace(operators, rms_norm=lambda *a: calls.append(a) or rms_norm(*a))
    GPT(replace(LLAMA_STYLE, qk_norm=True), counted).hidden(torch.zeros(1, 5, dtype=torch.int64))
    assert len(calls) == 1 + 3 * LLAMA_STYLE.num_hidden_layers  # the sums' norms are counted apart
