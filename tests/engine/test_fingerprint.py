"""A pass in a few numbers, against gradients that autograd gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from llmkit.engine.fingerprint import CHUNK, fingerprint


def passes(model: dict[str, Any], scale: float = 1.0) -> Any:
    batch: Any = SimpleNamespace(tokens=torch.zeros(1))

    def forward(batch: Any) -> Any:
        loss = sum((weight**2).sum() * scale for weight in model.values() if weight is not model["unused"])
        return SimpleNamespace(objective=loss)

    return fingerprint(forward, model, batch)


def test_numbers_are_those_of_the_gradients_and_nothing_is_left_behind() -> None:
    model = {name: torch.randn(size, requires_grad=True) for name, size in
             {"w": CHUNK + 3, "bias": 5, "unused": 2}.items()}  # fmt: skip
    found = passes(model)
    assert found.names == ["loss", "bias", "w"]
    expected = 2 * model["w"].detach()
    assert found.bits[2] == int(expected.view(torch.int32).long().sum())
    torch.testing.assert_close(found.norms[2], float(expected.double().norm()), rtol=1e-4, atol=0)
    assert abs(found.projections[2]) < 10 * found.norms[2]
    assert all(weight.grad is None and not weight._backward_hooks for weight in model.values())
    assert passes(model) == found
    assert passes(model, 1.0 + 2.0**-20).bits != found.bits
    other = passes(model, 1.0 + 2.0**-8)
    change = abs(other.projections[2] - found.projections[2])
    torch.testing.assert_close(change, abs(found.projections[2]) * 2.0**-8, rtol=0.01, atol=1e-2)
