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
from tests.model.test_block import OLMO
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, randomise

SHAPES = {
    "gpt2": GPT2_STYLE,
    "llama": LLAMA_STYLE,
    "qk_norm": replace(LLAMA_STYLE, qk_norm=True),
    "families": replace(OLMO, norm_placement="both", norm_weight_offset=1.0, num_hidden_layers=1),
}


def gradients(shape: ModelShape, operators: Operators, device: str, how: str) -> dict[str, torch.Tensor]:
    with torch.device(device):
        model = randomise(GPT(shape, operators=operators, activation_checkpointing=how))
    if shape.mlp == "gelu":
        assert model.blocks[0].mlp.activation_adds_bias == (operators is not TORCH), "who adds the bias"
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_of_the_engine_end_at_the_same_weights(device, precision):
    """Clipped, with masters or without; a step whose gradient is not finite changes nothing."""
    from llmkit.config.optimizer_section import Optimizer
    from llmkit.engine.native import NativeEngine
    from llmkit.precision import PRECISIONS

    states = []
    for form in ("torch", "triton"):
        with torch.device(device):
            model = randomise(GPT(GPT2_STYLE))
        engine = NativeEngine(
            model, Optimizer(eps=1e-3, learning_rate=0.01),
            precision=PRECISIONS[precision], gradient_clipping=0.5, operators=Operators.of({"adamw": form}),
        )  # fmt: skip
        for step in range(4):
            tokens = torch.randint(97, (2, 21), generator=torch.Generator().manual_seed(step)).to(device)
            if step == 2:
                kept = [each.detach().clone() for each in model.parameters()]
            targets = 40 if step != 2 else 1e-300  # the gradient overflows
            result = engine.train_step([Batch(tokens[:, :-1], tokens[:, 1:])], targets)
            assert float(result.skipped) == (step == 2), f"step {step}: {result}"
            if step == 2:
                assert all(map(torch.equal, kept, model.parameters())), "a skipped step changed weights"
        states.append({(s.parameter, s.kind): s.data.float() for s in engine._state_shards()})
        for master, weight in engine.masters.rounded().items():
            assert relative_error(weight, master) < 8e-3, f"{form}: weights are not their masters' values"
    for name, each in states[0].items():
        error = relative_error(states[1][name], each)
        assert error < (1e-5 if precision == "fp32" else 5e-2), f"{name}: {error:.1e}"
