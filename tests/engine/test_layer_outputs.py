"""Sizes of what layers give, against hooks; compiled blocks are not compiled anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmkit.batch import IGNORE, Batch
from llmkit.engine.layer_outputs import LayerOutputs
from llmkit.parallel.mesh import Mesh
from tests.engine.test_native import batch_of, split
from tests.shapes import GPT2_STYLE, random_model

NAMES = ["embedding", "positions", "blocks.0", "blocks.1", "norm", "head", "nothing.there"]


@pytest.mark.parametrize("parts", [1, 3])
def test_root_mean_square_and_maximum_are_over_all_micro_batches(parts: int) -> None:
    model, seen = random_model(GPT2_STYLE), {}
    batch = batch_of(GPT2_STYLE, 0)
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: seen.__setitem__(name, output.detach().double())
        )
        for name in NAMES[:5]
    ]
    expected = model(batch).nats
    for hook in hooks:
        hook.remove()
    outputs = LayerOutputs(model, NAMES, Mesh())
    assert outputs.names == NAMES[:6]
    with outputs.watched():
        found = torch.cat([model(each).nats for each in split(batch, parts)])
    torch.testing.assert_close(found, expected)
    rows = dict(zip(outputs.names, outputs.finish(), strict=True))
    assert rows["head"].tolist() == [0.0, 0.0, 0.0]
    for name, wanted in seen.items():
        squares, elements, largest = rows[name].tolist()
        assert elements == wanted.numel() * (parts if name == "positions" else 1)
        assert squares / elements == pytest.approx(float(wanted.square().mean()), rel=1e-6)
        assert largest == pytest.approx(float(wanted.abs().max()), rel=1e-6)


def test_rows_that_only_fill_do_not_count() -> None:
    model, batch = random_model(GPT2_STYLE), batch_of(GPT2_STYLE, 0)
    filled = Batch(
        torch.cat((batch.tokens, batch.tokens[:2] + 1)),
        torch.cat((batch.labels, torch.full((2, 19), IGNORE))),
    )
    found = []
    for each in (batch, filled):
        outputs = LayerOutputs(model, NAMES[:5], Mesh())
        with outputs.watched():
            model(each)
        found.append(outputs.finish())
    torch.testing.assert_close(*found)
    assert bool((found[0] > 0.0).all())


class Pieces(nn.Module):
    """Gives pieces of a sequence as layers do between which it is sharded: (seq, batch, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        result: torch.Tensor = self.layer(batch.tokens.t()[:, :, None].expand(-1, -1, 3).float())
        return result


def test_rows_are_found_in_pieces_of_a_sequence() -> None:
    model = Pieces()
    nn.init.eye_(model.layer.weight)
    outputs = LayerOutputs(model, ["layer"], Mesh())
    labels = torch.full((2, 5), IGNORE)
    labels[1] = 0
    with outputs.watched():
        model(Batch(torch.tensor([[9] * 5, [1, 2, 3, 4, 5]]), labels))
    assert outputs.finish().tolist() == [pytest.approx([3 * 55.0, 15.0, 5.0], rel=1e-6)]


def test_compiled_code_is_neither_lost_nor_made_anew() -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled.append(1)
        return graph.forward

    model = random_model(GPT2_STYLE)
    model.compile_parts(lambda message: pytest.fail(message), backend=backend)
    batch = Batch(*(torch.zeros(2, 8, dtype=torch.int64) for _ in range(2)))
    calls = [block._compiled_call_impl for block in model.blocks]
    first = model(batch).nats.sum()
    number = len(compiled)
    outputs = LayerOutputs(model, ["blocks.0", "blocks.1"], Mesh())
    with outputs.watched():
        second = model(batch).nats.sum()
    assert (len(compiled), float(second)) == (number, float(first)) and number > 0
    assert [block._compiled_call_impl for block in model.blocks] == calls
    assert bool((outputs.finish() > 0).all())
    torch.compiler.reset()
