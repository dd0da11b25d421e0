"""Statistics of layers against weights and gradients that a reader can look at, past the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import llmkit
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine import layer_sums
from llmkit.engine.layer_sums import COUNTS, GRADIENT, UPDATE, WEIGHT, layer_of
from llmkit.engine.native import NativeEngine
from llmkit.kernels.magnitudes import EDGES
from llmkit.optim.schedule import StepValues
from llmkit.precision import PRECISIONS
from tests.engine.test_native import batch_of, split, targets
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

LAYERS = ["embedding", "positions", "blocks.0", "blocks.1", "norm"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("embedding.weight", "embedding"),
        ("blocks.11.attention.qkv.weight", "blocks.11"),
        ("transformer.h.3.attn.c_attn.bias", "transformer.h.3"),
        ("transformer.wte.weight", "transformer.wte"),
        ("scale", "scale"),
        ("model.layers.0.mlp.experts.7.up.weight", "model.layers.0"),
    ],
)
def test_a_parameters_layer_follows_from_its_name(name: str, layer: str) -> None:
    assert layer_of(name) == layer


class Sign(llmkit.Optimizer):
    """An optimizer that llmkit knows nothing about."""

    def update(self, parameter: Any, gradient: Any, state: Any, group: Any) -> None:
        parameter -= group["lr"] * (gradient.sign() + group["weight_decay"] * parameter)


def measured(engine: NativeEngine, shape: Any, step: int, parts: int = 2) -> Any:
    batch, values = batch_of(shape, step), StepValues(0.7, 0.9, 1.0)
    return engine.train_step(split(batch, parts), targets(batch), values, measure=step in (0, 3))


def masters(engine: NativeEngine) -> dict[str, Tensor]:
    return {each.fragments[0].parameter: each.tensor.detach().clone() for each in engine.masters.held}


def gradients_of(model: Any, batch: Any) -> dict[str, Tensor]:
    """Of the mean loss, by autograd on one batch."""
    model.zero_grad()
    (model(batch).nats.sum() / targets(batch)).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def by_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All elements of each layer, fp64."""
    found: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        found.setdefault(layer_of(name), []).append(tensor.detach().double().flatten())
    return {layer: torch.cat(each) for layer, each in found.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adamw", "muon", "sign"])
@pytest.mark.parametrize("chunk", [2**22, 1000])
def test_norms_and_updates_are_those_of_weights_before_and_after(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, chunk: int
) -> None:
    monkeypatch.setitem(layer_sums.CHUNK, "cpu", chunk)
    known = Optimizer(name="muon" if name == "muon" else "adamw", learning_rate=1e-2, weight_decay=0.1)
    model = random_model(GPT2_STYLE)
    engine = NativeEngine(model, known, precision=PRECISIONS[precision], gradient_clipping=0.5)
    if name == "sign":
        groups = [group for each in engine.optimizers for group in each.param_groups]
        engine.optimizers = [Sign(groups, known)]
    for step in range(4):
        before = masters(engine)
        copy = random_model(GPT2_STYLE)
        copy.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
        result = measured(engine, GPT2_STYLE, step)
        if step not in (0, 3):
            assert result.layers is None and result.by_position is None
            continue
        statistics = result.layers
        assert list(statistics.layers) == LAYERS
        after, gradients = masters(engine), by_layer(gradients_of(copy, batch_of(GPT2_STYLE, step)))
        weights, changes = by_layer(after), by_layer({key: after[key] - before[key] for key in after})
        for row, layer in zip(statistics.sums, LAYERS, strict=True):
            assert row[WEIGHT].sqrt() == pytest.approx(float(weights[layer].norm()), rel=1e-6)
            assert row[UPDATE].sqrt() == pytest.approx(float(changes[layer].norm()), rel=2e-4)
            tolerance = 1e-5 if precision == "fp32" else 0.05
            assert row[GRADIENT].sqrt() == pytest.approx(float(gradients[layer].norm()), rel=tolerance)
            assert int(row[COUNTS:].sum()) == weights[layer].numel()
            if precision == "fp32":
                edges = [*EDGES[:-1], np.inf]
                counts = np.histogram(gradients[layer].abs().float().numpy(), edges)[0]
                seen = EDGES.index(2.0**-24)  # below, a key bias has nothing but rounding
                above = np.cumsum((counts - row[COUNTS:].numpy())[seen:][::-1])
                assert np.abs(above).max() <= 1, "a value beside an edge may be rounded to its other side"
        total = float(statistics.sums[:, GRADIENT].sum().sqrt())
        assert total == pytest.approx(float(result.grad_norm), rel=1e-6)


def test_a_skipped_update_has_no_sizes_and_the_next_one_has() -> None:
    engine = NativeEngine(
        random_model(LLAMA_STYLE), Optimizer(), precision=PRECISIONS["fp32"], gradient_clipping=1.0
    )
    with torch.no_grad():
        weight = next(iter(engine.model.parameters()))
        good = weight[0, 0].clone()
        weight[0, 0] = float("nan")
    batch = batch_of(LLAMA_STYLE, 0)
    batch.tokens[0, 0] = 0
    first = engine.train_step([batch], targets(batch), measure=True)
    with torch.no_grad():
        weight[0, 0] = good
    second = engine.train_step([batch], targets(batch), measure=True)
    assert bool(first.skipped) and bool(first.layers.sums[:, :COUNTS].isnan().all())
    assert not bool(second.skipped) and bool(second.layers.sums.isfinite().all())
    assert bool((second.layers.sums[:, UPDATE] > 0).all())
