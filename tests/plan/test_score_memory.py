"""What of scores is counted, against the tiles of attention; the bytes themselves: `test_activations`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.kernels import attention, attention_blocks
from llmkit.parallel.layout import Layout
from llmkit.plan import score_memory
from llmkit.plan.arithmetic import Arithmetic
from llmkit.plan.score_memory import mask_bytes, mean_keys, score_bytes
from llmkit.precision import PRECISIONS
from tests.shapes import LLAMA_STYLE


@pytest.mark.parametrize("window", [None, 1, 50, 70, 5000])
@pytest.mark.parametrize("length", [1, 40, 64, 65, 512, 1000, 2048])
def test_the_keys_of_queries_are_those_of_their_tiles(length: int, window: int | None) -> None:
    tiles = list(attention_blocks.tiles(length, length, window))
    pairs = sum((t.queries.stop - t.queries.start) * (t.keys.stop - t.keys.start) for t in tiles)
    assert mean_keys(length, window) * length == pytest.approx(pairs)


def test_the_sizes_are_those_of_the_kernels() -> None:
    assert score_memory.LONGEST_MASK == attention.LONGEST_MASK
    assert (score_memory.SMALLEST_TILE, score_memory.TILES) == (
        attention_blocks.SMALLEST_BLOCK, attention_blocks.BLOCKS
    )  # fmt: skip


def test_dropout_and_soft_caps_have_the_form_that_computes_them() -> None:
    how = Arithmetic(
        PRECISIONS["bf16"], Layout(), True, True, {"attention": "sdpa"}, length=640, documents=True
    )
    capped = replace(LLAMA_STYLE, attn_logit_softcapping=30.0)
    heads, keys = LLAMA_STYLE.num_attention_heads, mean_keys(640, None)
    assert score_bytes(LLAMA_STYLE, how, "none") == 0 and mask_bytes(LLAMA_STYLE, how, "none") == 2 * keys
    assert score_bytes(capped, how, "none") == 4 * heads * keys and mask_bytes(capped, how, "none") == 0
    dropped = replace(capped, attention_dropout=0.1)
    assert score_bytes(dropped, how, "none") == 6 * heads * keys
    windows = replace(capped, sliding_window=64, layer_types=("sliding_attention", "full_attention"))
    mixed = score_bytes(replace(windows, num_hidden_layers=2), how, "none")
    assert mixed == pytest.approx(4 * heads * (keys + mean_keys(640, 64)) / 2)
    assert score_bytes(capped, how, "full") == 0
