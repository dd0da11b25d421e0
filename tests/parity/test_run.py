"""What a trajectory holds."""

from __future__ import annotations

import pytest
import torch

from llmkit.model.gpt import GPT
from llmkit.parity.compare import relative_error
from llmkit.parity.subjects import MODELS, RandomWeights, count_targets, global_batch


def test_gradients_are_those_of_the_loss(alone):
    """Told from the moments, but equal to what a backward pass gives, clipped."""
    source, model = RandomWeights(MODELS["gpt2"]), GPT(MODELS["gpt2"])
    parts, batch = model.parameter_slices(), global_batch(MODELS["gpt2"], 0, masked=True)
    for name, parameter in model.named_parameters():
        parameter.data.zero_()
        for part in parts[name]:
            parameter.data[part.start : part.stop] = source.read(part.name, "master")
    (model(batch).nats.sum() / count_targets(batch)).backward()
    norm = float(torch.cat([p.grad.double().flatten() for p in model.parameters()]).norm())
    assert norm == pytest.approx(alone.norms[0], rel=1e-6)
    for parameter in model.parameters():
        parameter.grad *= 0.5 / norm
    for name, parameter in model.named_parameters():
        for part in parts[name]:
            if not part.name.endswith("k_proj.bias"):
                error = relative_error(alone.gradients[0][part.name], parameter.grad[part.start : part.stop])
                assert error < 1e-6, part.name
