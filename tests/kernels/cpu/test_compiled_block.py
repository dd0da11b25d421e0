"""A block with biases as torch.compile makes it of the kernels for AVX-512, in bf16, against float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch._inductor.config as inductor
from torch import Tensor

from llmkit.kernels.compiler import compiler_missing
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from llmkit.monitor.hardware import has_avx512_bf16
from tests.engine.test_native import batch_of
from tests.kernels.float64 import relative_error
from tests.shapes import GPT2_STYLE, random_model

pytestmark = pytest.mark.skipif(
    not has_avx512_bf16() or compiler_missing(torch.device("cpu")) is not None,
    reason="needs a CPU with AVX-512 BF16 and a C++ compiler",
)
SHAPE = replace(GPT2_STYLE, num_hidden_layers=1)


def gradients(model: GPT) -> dict[str, Tensor]:
    """Of each full tensor but the keys' bias, whose gradient is nothing but rounding."""
    model(batch_of(SHAPE, 0)).nats.sum().backward()
    weights = dict(model.named_parameters())
    found = {
        part.name: weights[name].grad[part.start : part.stop]
        for name, parts in model.parameter_slices().items()
        for part in parts
    }
    del found["blocks.0.attention.k_proj.bias"]
    return found


def test_it_is_as_near_to_float64_as_pytorch_in_bf16() -> None:
    plain = random_model(SHAPE).bfloat16()
    ours = GPT(SHAPE, Operators.of(dict.fromkeys(("linear", "attention", "head_loss"), "avx512"))).bfloat16()
    ours.load_state_dict(plain.state_dict())
    exact = gradients(copy.deepcopy(plain).double())
    torch._dynamo.reset()
    with inductor.patch(compile_threads=1, cpp_cache_precompile_headers=False):
        ours.compile_parts(pytest.fail)
        found = gradients(ours)
    usual = gradients(plain)
    assert len(found) == len(exact) > 12
    for name, wanted in exact.items():
        error, allowed = relative_error(found[name], wanted), 1.3 * relative_error(usual[name], wanted)
        assert error <= allowed + 1e-3, (name, error, allowed)
