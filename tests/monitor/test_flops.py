"""FLOPs a token against values worked out by hand from the published shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from llmkit.monitor.flops import train_flops_per_token, utilization


@dataclass(frozen=True)
class Shape:
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    hidden_size: int
    position_embedding: str
    max_position_embeddings: int
    num_parameters: int


GPT2 = Shape(12, 12, 64, 768, "learned", 1024, 124_439_808)
LLAMA_1B = Shape(16, 32, 64, 2048, "rope", 131_072, 1_235_814_400)


def test_gpt2_124m_without_its_learned_positions() -> None:
    # 6 x (124,439,808 - 1024 x 768) = 741,920,256; 12 x 12 x 768 x 1024 = 113,246,208
    assert train_flops_per_token(GPT2, 1024) == 855_166_464


def test_llama_1b_whose_rotary_positions_have_no_parameters() -> None:
    # 6 x 1,235,814,400 = 7,414,886,400; 12 x 16 x 2048 x 2048 = 805,306,368
    assert train_flops_per_token(LLAMA_1B, 2048) == 8_220_192_768


def test_the_causal_count_has_half_the_attention() -> None:
    assert train_flops_per_token(GPT2, 1024, causal=True) == 741_920_256 + 113_246_208 // 2
    assert train_flops_per_token(LLAMA_1B, 2048, causal=True) == 7_414_886_400 + 805_306_368 // 2


def test_attention_counts_the_heads_not_the_residual_stream() -> None:
    wide_heads = replace(LLAMA_1B, head_dim=128)
    assert train_flops_per_token(wide_heads, 2048) == 7_414_886_400 + 2 * 805_306_368


def test_utilization_is_the_share_of_what_all_devices_could_do() -> None:
    assert utilization(1000.0, 2e9, peak=1e13) == pytest.approx(0.2)
    assert utilization(1000.0, 2e9, peak=1e13, devices=4) == pytest.approx(0.05)


def test_an_unknown_peak_gives_no_utilization() -> None:
    assert utilization(1000.0, 2e9, peak=None) is None
