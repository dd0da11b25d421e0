"""What blocks with adapters keep, against the tensors that autograd saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmkit.config.lora_section import Lora
from llmkit.model.gpt import GPT
from llmkit.model.lora import add_adapters
from llmkit.model.positions import BlockInputs
from llmkit.model.rope import rope_tables
from llmkit.plan.activations import block_bytes
from llmkit.plan.adapter_memory import adapted
from llmkit.plan.arithmetic import Arithmetic
from llmkit.precision import default_type
from tests.plan.test_activations import ALONE, COMPILER, LENGTH, ROWS, SHAPES, TYPES, arithmetic, operators

ALL, SOME = ["*_proj"], ["q_proj", "v_proj"]
TARGETS = [ALL, SOME, ["down_proj"]]


def saved_bytes(name: str, how: Arithmetic, recompute: str) -> float:
    """Bytes a token of all memory that the saved tensors of a block hold, parameters left out."""
    torch._dynamo.reset()
    shape, kind = replace(SHAPES[name], num_hidden_layers=1), TYPES[how.precision.name]
    with default_type(kind):
        model = GPT(shape, operators(how), ALONE, recompute, 1)
        add_adapters(model, how.lora)
    block, rope = model.blocks[0], None
    if shape.position_embedding == "rope":
        rope = rope_tables(LENGTH, shape.rotary_dim, shape.rope_theta)
    kept: dict[int, Tensor] = {}

    def pack(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    x = torch.randn(ROWS, LENGTH, shape.hidden_size, dtype=kind, requires_grad=True)
    known = {each.untyped_storage().data_ptr() for each in (*block.parameters(), *(rope or ()))}
    call = torch.compile(block._call_impl, backend=COMPILER, dynamic=False) if how.compiled else block
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        out = call(x, BlockInputs(rope))
    found = sum(each.untyped_storage().nbytes() for at, each in kept.items() if at not in known)
    del out
    return found / (LENGTH * ROWS)


COMPILED = [("llama", "bf16", True, how, targets) for how in ("none", "selective") for targets in TARGETS]


@pytest.mark.parametrize(
    ("name", "precision", "compiled", "recompute", "targets"),
    [
        *(("llama", "bf16", False, "none", targets) for targets in TARGETS),
        *(("gpt2", "bf16", False, "none", targets) for targets in TARGETS),
        *(("llama", "fp32", False, "none", targets) for targets in TARGETS),
        ("llama", "bf16", False, "full", ALL),
        ("llama", "bf16", True, "selective", ALL),
        ("llama", "bf16", True, "none", SOME),
        ("experts", "bf16", False, "none", ALL),
        ("a shared expert", "bf16", False, "none", ALL),
        ("a shared expert", "fp32", False, "none", ["down_proj"]),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in COMPILED),
    ],
)
def test_a_block_with_adapters_keeps_what_is_counted(name, precision, compiled, recompute, targets):
    how = replace(arithmetic(compiled, precision), lora=Lora(rank=4, targets=targets))
    counted = block_bytes(replace(SHAPES[name], num_hidden_layers=1), how, recompute)
    assert saved_bytes(name, how, recompute) == pytest.approx(counted, rel=0.02, abs=16)


def test_the_share_of_layers_that_have_adapters() -> None:
    shape = replace(SHAPES["llama"], num_hidden_layers=4)
    how = replace(arithmetic(), lora=Lora(rank=4, targets=["blocks.0.*.q_proj", "o_proj"]))
    found = adapted(shape, how)
    assert (found["q_proj"], found["o_proj"], found["up_proj"]) == (0.25, 1.0, 0.0)
    assert adapted(SHAPES["experts"], how)["down_proj"] == 0.0
