"""Rotary frequencies and their scalings, bit for bit those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmkit.config.model_section import UNSCALED, RopeScaling
from llmkit.model.rope import attention_factor, rope_frequencies, rope_tables

SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, bounds": {
        "rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 4096, "beta_fast": 16.0,
        "beta_slow": 2.0, "truncate": False,
    },
    "yarn, mscale": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn, factor": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 0.8,
    },
}  # fmt: skip


@pytest.mark.parametrize(("head_dim", "share"), [(128, 1.0), (64, 0.5), (10, 1.0)])
@pytest.mark.parametrize("name", SCALINGS)
def test_a_scaling_is_that_of_transformers(name: str, head_dim: int, share: float) -> None:
    given, theta = SCALINGS[name], 500000.0
    config = LlamaConfig(
        head_dim=head_dim, hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=131072,
        rope_parameters={"rope_theta": theta, "partial_rotary_factor": share, **given},
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS[str(given["rope_type"])](config, "cpu")
    scaling = RopeScaling.model_validate(given)
    assert torch.equal(rope_frequencies(int(head_dim * share), theta, scaling), frequencies)
    assert attention_factor(scaling) == factor
    cos, sin = rope_tables(50, int(head_dim * share), theta, scaling, 0.3)
    torch.testing.assert_close(cos[33], (33 * frequencies).cos() * factor * 0.3)
    torch.testing.assert_close(sin[33], (33 * frequencies).sin() * factor * 0.3)


def test_without_scaling_they_are_the_powers_of_theta() -> None:
    wanted = 1.0 / (1e6 ** (torch.arange(0, 6, 2).float() / 6))
    assert torch.equal(rope_frequencies(6, 1e6, UNSCALED), wanted)
    torch.testing.assert_close(wanted, torch.tensor([1.0, 1e-2, 1e-4]))
