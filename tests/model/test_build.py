"""Models are built as described, and what is no model, or placed wrongly, is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from llmkit.batch import Batch, LossSum
from llmkit.config.custom_model import CustomModel
from llmkit.errors import UserError
from llmkit.kernels.operators import Operators
from llmkit.model.base import Model, ModelContext
from llmkit.model.build import build_model, check_placements, checked_model, tensor_parallel_of
from llmkit.model.gpt import GPT
from llmkit.model.layers import FusedColumnLinear, Layer, uninitialized_parameter
from llmkit.parallel.mesh import Mesh, TensorParallel
from llmkit.parallel.placement import Partial, Placement, place
from llmkit.parallel.slices import ParameterSlice
from tests.shapes import LLAMA_STYLE

CONTEXT = ModelContext(vocab_size=11, sequence_length=5)


class Half(Layer):
    """A parameter of which each of two ranks holds half of the columns."""

    def __init__(self, sharded_dim: int | None) -> None:
        super().__init__()
        self.weight = uninitialized_parameter(4, 3, sharded_dim=sharded_dim)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        return {"weight": [ParameterSlice(f"{path}.weight", (4, 6), ((0, 4), (0, 3)), 0, 4)]}


class Small(Model):
    """A model of the given modules."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, batch: Batch) -> LossSum:
        raise NotImplementedError


def test_ours_has_what_is_asked_for_and_no_weights_yet():
    tp, operators = TensorParallel(1, 2), Operators.of({"attention": "matmul"})
    model = build_model(LLAMA_STYLE, tp, operators, "full", 2)
    assert isinstance(model, GPT) and not model.has_weights and model.tp is tp
    assert [block.activation_checkpointing for block in model.blocks] == ["full", "none"]
    assert all(block.attention.operators is operators for block in model.blocks)


def test_a_foreign_model_knows_what_sampling_asks_for():
    model = checked_model(Small(linear=nn.Linear(2, 3)), CONTEXT)
    assert (model.vocab_size, model.context_length) == (11, 5)


def test_what_is_no_model_or_cannot_be_saved_is_refused():
    with pytest.raises(UserError, match=r"Linear is no llmkit\.Model"):
        checked_model(nn.Linear(2, 3), CONTEXT)
    with pytest.raises(
        UserError, match=r"Small has persistent buffers.*\(norm.num_batches_tracked, norm.running"
    ):
        checked_model(Small(norm=nn.BatchNorm1d(3)), CONTEXT)
    with pytest.raises(UserError, match="Small has no parameters, so there is nothing to train"):
        checked_model(Small(), CONTEXT)
    columns = {"a": 4}
    twice = Small(
        one=FusedColumnLinear(2, columns, True, TensorParallel()),
        two=FusedColumnLinear(2, columns, True, TensorParallel()),
    )
    with pytest.raises(UserError, match=r"two parameters that hold the tensor a\.weight"):
        checked_model(twice, CONTEXT)


@pytest.mark.parametrize("dim", [None, 0])
def test_a_layer_that_is_placed_otherwise_than_its_slices_say_is_found(dim):
    check_placements(Small(half=Half(1), linear=nn.Linear(2, 3)))
    with pytest.raises(AssertionError, match=r"half\.weight is sharded along \{1\}"):
        check_placements(Small(half=Half(dim)))


def test_a_gradient_that_no_engine_sums_is_refused():
    small = Small(linear=nn.Linear(2, 3))
    place(small.linear.weight, Placement({"data": Partial()}))
    with pytest.raises(AssertionError, match=r"linear\.weight: no engine sums gradients over \('data',\)"):
        check_placements(small)


def test_only_ours_shares_heads(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(Mesh, "tensor_parallel", lambda self, heads, sequence: asked.append(heads))
    mesh = Mesh(0, 8, {"tensor": 8})
    tensor_parallel_of(replace(LLAMA_STYLE, num_attention_heads=8, head_dim=12), mesh, False)
    foreign = CustomModel("other", 11, 5, 7, 42, {})
    tensor_parallel_of(foreign, mesh, False)
    assert asked == [LLAMA_STYLE.num_key_value_heads, 8]


@pytest.mark.parametrize(
    ("size", "changes", "why"),
    [
        (4, {}, "its 6 heads are not divisible by 4"),
        (3, {"intermediate_size": 70}, "its MLP's width 70 is not divisible"),
        (3, {}, "its 2 key and value heads cannot be dealt out"),
        (6, {}, "a head's width 10 is not divisible by 3"),
    ],
)
def test_a_model_that_so_many_cannot_share_is_refused(size, changes, why):
    with pytest.raises(UserError, match=f"{size} processes cannot share this model: {why}"):
        tensor_parallel_of(replace(LLAMA_STYLE, **changes), Mesh(0, size, {"tensor": size}), False)
