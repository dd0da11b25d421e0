"""Whole models with Triton's operators against the same in plain PyTorch: loss and every gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.batch import Batch
from llmkit.config.shape import ModelShape
from llmkit.kernels.operators import FORMS, TORCH, Operators
from llmkit.model.gpt import GPT
from tests.kernels.float64 import relative_error
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, randomise

SHAPES = {"gpt2": GPT2_STYLE, "llama": LLAMA_STYLE, "qk_norm": replace(LLAMA_STYLE, qk_norm=True)}


def gradients(shape: ModelShape, operators: Operators, device: str, how: str) -> dict[str, torch.Tensor]:
    with torch.device(device):
        model = randomise(GPT(shape, operators=operators, activation_checkpointing=how))
    tokens = torch.randint(shape.vocab_size, (2, 21), generator=torch.Generator().manual_seed(3)).to(device)
    loss = model(Batch(tokens[:, :-1], tokens[:, 1:]))
    loss.objective.backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"loss": loss.objective.detach(), **found}


@pytest.mark.parametrize("how", ["none", "selective"])
@pytest.mark.parametrize("style", SHAPES)
def test_a_model_has_the_same_gradients(device, style, how):
    there = [
        name for name, forms in FORMS.items() if any("kernels.triton" in each for each in forms.values())
    ]
    pointwise = [name for name in there if name in ("norm", "rotation", "activation", "dropout_add")]
    assert len(pointwise) == 4, str(there)
    wanted = gradients(SHAPES[style], TORCH, device, how)
    found = gradients(SHAPES[style], Operators.of(dict.fromkeys(pointwise, "triton")), device, how)
    assert found.keys() == wanted.keys(), str(found.keys() ^ wanted.keys())
    for name, each in found.items():
        assert relative_error(each, wanted[name]) < 2e-5, f"{name}: {relative_error(each, wanted[name]):.1e}"
