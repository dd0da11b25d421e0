"""FLOPs a token against values worked out by hand from the published shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmkit.batch import Batch
from llmkit.config.shape import ModelShape
from llmkit.model.gpt import GPT
from llmkit.monitor.flops import (
    causal_flops_per_token,
    recomputed_flops_per_token,
    train_flops_per_token,
    utilization,
)
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, randomise

GPT2 = ModelShape(
    vocab_size=50257, padded_vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    num_key_value_heads=12, head_dim=64, intermediate_size=3072, max_position_embeddings=1024, mlp="gelu",
    norm="layernorm", position_embedding="learned", attention_bias=True, mlp_bias=True,
)  # fmt: skip
LLAMA_1B = ModelShape(
    vocab_size=128_256, padded_vocab_size=128_256, hidden_size=2048, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, head_dim=64, intermediate_size=8192,
    max_position_embeddings=131_072,
)  # fmt: skip


def test_gpt2_124m_without_its_learned_positions() -> None:
    assert GPT2.num_parameters == 124_439_808
    # 6 x (124,439,808 - 1024 x 768) = 741,920,256; 12 x 12 x 768 x 1024 = 113,246,208
    assert train_flops_per_token(GPT2, 1024) == 855_166_464


def test_llama_1b_whose_rotary_positions_have_no_parameters() -> None:
    assert LLAMA_1B.num_parameters == 1_235_814_400
    # 6 x 1,235,814,400 = 7,414,886,400; 12 x 16 x 2048 x 2048 = 805,306,368
    assert train_flops_per_token(LLAMA_1B, 2048) == 8_220_192_768


def test_frozen_weights_have_no_product_for_their_gradient() -> None:
    # 4 x 1,235,814,400 + 6 x 11,272,192 = 5,010,890,752
    assert train_flops_per_token(LLAMA_1B, 2048, adapters=11_272_192) == 5_010_890_752 + 805_306_368


def test_attention_counts_the_heads_not_the_residual_stream() -> None:
    # 16 x 2048 x (2 x 32 + 2 x 8) x 64 = 167,772,160 weights more
    wide_heads = replace(LLAMA_1B, head_dim=128)
    assert train_flops_per_token(wide_heads, 2048) == 7_414_886_400 + 6 * 167_772_160 + 2 * 805_306_368


def test_causal_attention_needs_half_and_lookups_nothing() -> None:
    # Matrices of a block: 12 x 768^2; the tied embedding is the head: 50,257 x 768.
    products = 6 * (12 * 12 * 768**2 + 50_257 * 768)
    attention = 12 * 12 * 768 * (1024 + 1) / 2
    assert causal_flops_per_token(GPT2, [1024]) == products + attention
    untied = replace(LLAMA_1B, tie_word_embeddings=False)
    assert causal_flops_per_token(untied, [2048]) == causal_flops_per_token(LLAMA_1B, [2048])
    # Full over causal as published for these: 1.07, 1.05 and, at length 8192, 1.18.
    for shape, length, ratio in ((GPT2, 1024, 1.07), (LLAMA_1B, 2048, 1.05), (LLAMA_1B, 8192, 1.18)):
        causal = causal_flops_per_token(shape, [length])
        assert causal is not None
        assert train_flops_per_token(shape, length) / causal == pytest.approx(ratio, abs=0.01)


def test_windows_and_documents_are_what_positions_see() -> None:
    shape = replace(LLAMA_1B, sliding_window=3, layer_types=("sliding_attention", "full_attention"))
    products = causal_flops_per_token(LLAMA_1B, [1])
    assert products is not None
    products -= 12 * 16 * 2048  # a position that sees itself alone
    lengths, seen = [1, 2, 5, 4], {"all": 0, "near": 0}
    for length in lengths:
        for query in range(length):
            seen["all"] += len(range(query + 1))
            seen["near"] += len(range(max(0, query - 2), query + 1))
    expected = 12 * 2048 * 8 * (seen["all"] + seen["near"]) / sum(lengths)
    assert causal_flops_per_token(shape, lengths) == pytest.approx(products + expected)


def test_causal_products_of_adapters() -> None:
    both = [causal_flops_per_token(LLAMA_1B, [2048], adapters=adapters) for adapters in (0, 1_000_000)]
    assert both[0] is not None and both[1] is not None
    matrices = 1_235_814_400 - 33 * 2048  # but for the norms
    assert both[0] - both[1] == 2 * matrices - 6_000_000


def test_products_that_are_computed_again() -> None:
    block = 2048 * (32 + 2 * 8) * 64 + 2048 * 2048 + 2 * 2048 * 8192  # without the last product
    attention = 4 * 2048 * 2048
    assert recomputed_flops_per_token(LLAMA_1B, 2048, "full") == 16 * (2 * block + attention)
    assert recomputed_flops_per_token(LLAMA_1B, 2048, "full", every=3) == 6 * (2 * block + attention)
    assert recomputed_flops_per_token(LLAMA_1B, 2048, "selective") == 0
    normed = replace(LLAMA_1B, norm_placement="both")
    more = recomputed_flops_per_token(normed, 2048, "full") - 16 * (2 * block + attention)
    assert more == 16 * 2 * 2048 * 8192


def products_counted(shape: ModelShape, how: str = "none", every: int = 1) -> float:
    """FLOPs a token of the matrix products that PyTorch counts in a forward and backward pass."""
    model = randomise(GPT(shape, activation_checkpointing=how, activation_checkpointing_every=every))
    tokens = torch.arange(93).view(3, 31) % shape.vocab_size
    with FlopCounterMode(display=False) as counter:
        model(Batch(tokens[:, :-1], tokens[:, 1:])).nats.sum().backward()
    counted = counter.get_flop_counts()["Global"].items()
    return sum(flops for operation, flops in counted if "attention" not in str(operation)) / 90


@pytest.mark.parametrize("shape", [GPT2_STYLE, replace(LLAMA_STYLE, num_hidden_layers=3)])
def test_products_are_those_that_pytorch_counts(shape: ModelShape) -> None:
    causal = causal_flops_per_token(shape, [30])
    assert causal is not None
    width = shape.num_attention_heads * shape.head_dim
    padding = (shape.padded_vocab_size - shape.vocab_size) * shape.hidden_size
    attention = 12 * shape.num_hidden_layers * width * 31 / 2
    counted = products_counted(shape)
    assert causal - attention + 6 * padding == counted
    assert products_counted(shape, "selective") == counted
    for normed in (shape, replace(shape, norm_placement="both")):
        for every in (1, 2):
            again = products_counted(normed, "full", every) - products_counted(normed)
            blocks = len(range(0, shape.num_hidden_layers, every))
            expected = recomputed_flops_per_token(normed, 30, "full", every)
            assert expected == again + 4 * blocks * width * 30  # attention, not counted above


def test_utilization_is_the_share_of_what_all_devices_could_do() -> None:
    assert utilization(1000.0, 2e9, peak=1e13) == pytest.approx(0.2)
    assert utilization(1000.0, 2e9, peak=1e13, devices=4) == pytest.approx(0.05)


def test_an_unknown_peak_gives_no_utilization() -> None:
    assert utilization(1000.0, 2e9, peak=None) is None
