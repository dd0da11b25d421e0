"""Attention in blocks of queries against all pairs at once in float64; what blocks skip and keep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from llmkit.batch import Rows
from llmkit.kernels.attention import LONGEST_MASK, sdpa
from llmkit.kernels.attention_blocks import Tile, blocks, matmul, tile_mask, tiles
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from tests.kernels.dense_attention import dense, documents_of, tensors
from tests.kernels.float64 import check
from tests.shapes import LLAMA_STYLE, randomise

CPU = torch.device("cpu")
SHAPE = replace(LLAMA_STYLE, max_position_embeddings=130)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", [blocks, matmul, sdpa])
@pytest.mark.parametrize(
    ("shape", "heads", "options"),
    [
        ((2, 150, 150), (6, 2), {}),
        ((1, 600, 600), (2, 2), {"window": 70, "scale": 0.3}),
        ((2, 150, 150), (3, 1), {"window": 2}),
        ((1, 150, 150), (4, 4), {"softcap": 1.5, "documents": [[1, 1, 70, 78]]}),
        ((2, 600, 600), (3, 1), {"documents": [[600], [1, 63, 1, 65, 470]], "window": 100}),
        ((2, 70, 520), (4, 2), {"documents": [[300, 220], [519, 1]], "softcap": 3.0}),
    ],
)
def test_blocks_equal_all_pairs(form, dtype, shape, heads, options):
    options = dict(options)
    if "documents" in options:
        options["documents"] = documents_of(options["documents"])
    limit = 1.5e-2 if dtype == torch.bfloat16 else None  # weights are rounded before they are summed
    check(partial(form, **options), partial(dense, **options), tensors(shape, heads, 24, dtype), limit)


@pytest.mark.parametrize("form", [blocks, matmul, sdpa])
def test_a_document_is_computed_as_if_it_were_alone(form):
    lengths = [[1, 200, 64, 335], [335, 1, 1, 263]]
    q, k, v = (x.detach() for x in tensors((2, 600, 600), (4, 2), 16, torch.float32))
    whole = form(q, k, v, documents=documents_of(lengths))
    for row, row_lengths in enumerate(lengths):
        parts = zip(*(x[row].split(row_lengths) for x in (q, k, v, whole)), strict=True)
        for query, key, value, found in parts:
            torch.testing.assert_close(form(query[None], key[None], value[None])[0], found)


def test_a_mask_shows_a_position_itself_and_what_is_before():
    all_of_3, last_2 = Tile(slice(0, 3), slice(0, 3)), Tile(slice(0, 2), slice(0, 3))
    assert tile_mask(all_of_3, 3, 3, None, None, CPU).tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert tile_mask(last_2, 2, 3, 2, None, CPU).tolist() == [[1, 1, 0], [0, 1, 1]]
    assert tile_mask(Tile(slice(1, 2), slice(1, 3)), 2, 3, 2, None, CPU).tolist() == [[1, 1]]


def test_blocks_leave_out_what_no_query_sees():
    pairs = [
        (t.queries.stop - t.queries.start) * (t.keys.stop - t.keys.start) for t in tiles(1024, 1024, None)
    ]
    assert len(pairs) == 8 and sum(pairs) == 1024 * 1024 * 9 // 16
    banded = list(tiles(1024, 1024, 200))
    assert all(t.keys.stop - t.keys.start <= 128 + 199 for t in banded) and banded[-1].keys == slice(
        697, 1024
    )
    assert list(tiles(1, 700, 50)) == [Tile(slice(0, 1), slice(650, 700))]  # a token of generation


def test_documents_add_no_memory_and_blocks_keep_no_weights():
    q, k, v = tensors((1, 1024, 1024), (2, 2), 8, torch.float32)
    sizes = {}
    for name, documents in (("none", None), ("documents", documents_of([[500, 524]]))):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            blocks(q, k, v, documents=documents)
        sizes[name] = sum(t.numel() for t in kept)
    assert sizes["none"] == 4 * q.numel() + 2 * 1024  # inputs, output, a number a row and head
    assert sizes["documents"] == sizes["none"] + 1024  # the documents themselves


@pytest.mark.parametrize("keys", [LONGEST_MASK, 1100])
@pytest.mark.parametrize("form", [blocks, matmul, sdpa])
def test_no_mask_of_long_rows_is_made_at_once(form, keys):
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            nonlocal largest
            made = function(*arguments, **(options or {}))
            if isinstance(made, torch.Tensor) and made.dtype == torch.bool:
                largest = max(largest, made.numel())
            return made

    q, k, v = tensors((1, keys, keys), (2, 1), 8, torch.float32)
    documents = documents_of([[keys - 100, 100]])
    with Sizes():
        form(q, k, v, documents=documents, window=1000).sum().backward()
    allowed = keys * keys if keys == LONGEST_MASK else keys * keys // 4
    assert 0 < largest <= allowed


@pytest.mark.parametrize("how", ["none", "selective"])
def test_compiled_blocks_of_a_model_have_the_same_gradients(how):
    from torch._dynamo.utils import counters

    rows = Rows.of(torch.randint(9, (2, 131), dtype=torch.int32), None, 0)
    found = []
    counters.clear()
    for compiled in (False, True):
        model = randomise(GPT(SHAPE, Operators.of({"attention": "blocks"}), activation_checkpointing=how))
        if compiled:
            model.compile_parts(pytest.fail, "aot_eager")
        model(rows.to(CPU)).objective.backward()
        found.append([each.grad for each in model.parameters()])
    assert not counters["graph_break"]
    torch.testing.assert_close(found[1], found[0])


def test_second_derivatives_are_refused():
    q, k, v = tensors((1, 6, 6), (2, 1), 4, torch.float64)
    (gradient,) = torch.autograd.grad(blocks(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
