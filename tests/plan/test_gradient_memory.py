"""Gradients of a block's activations: the peak of a step whose blocks are computed again, beside the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.memory_lengths import SHAPE, Case, peak, planned, slope
from llmkit.config.model_section import Moe
from llmkit.config.shape import ModelShape
from tests.chosen import few_at_every_commit

LENGTHS = (192, 384)
PLAIN = replace(SHAPE, max_position_embeddings=LENGTHS[-1], num_hidden_layers=4)


def with_experts(**settings: int) -> ModelShape:
    return replace(PLAIN, moe=Moe.model_validate(settings))


SHAPES = {
    "gelu": (replace(PLAIN, mlp="gelu"), 0.03),
    "relu2": (replace(PLAIN, mlp="relu2"), 0.03),
    "norms before and behind": (replace(PLAIN, mlp="geglu", norm_placement="both"), 0.06),
    "narrow MLP": (replace(PLAIN, intermediate_size=32), 0.1),
    "experts": (with_experts(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=96), 0.05),
    "narrow experts": (with_experts(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=48), 0.03),
    "a shared expert": (
        with_experts(
            num_experts=4, num_experts_per_tok=1, moe_intermediate_size=128,
            shared_expert_intermediate_size=96,
        ), 0.04,
    ),
    "a large shared expert": (
        with_experts(
            num_experts=4, num_experts_per_tok=1, moe_intermediate_size=32,
            shared_expert_intermediate_size=256,
        ), 0.04,
    ),
    "dense layers between those of experts": (
        replace(
            with_experts(
                num_experts=4, num_experts_per_tok=1, moe_intermediate_size=128,
                shared_expert_intermediate_size=384, every_n_layers=2,
            ), intermediate_size=512,
        ), 0.07,
    ),
    "dense layers before those of experts": (
        replace(
            with_experts(
                num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64,
                shared_expert_intermediate_size=320, first_dense_layers=3,
            ), intermediate_size=512,
        ), 0.1,
    ),
}  # fmt: skip


ALWAYS = ("gelu", "relu2", "norms before and behind", "narrow MLP", "experts")
ALWAYS += ("dense layers between those of experts",)


@pytest.mark.parametrize("name", few_at_every_commit(SHAPES, ALWAYS))
def test_the_peak_of_a_recomputed_block_is_that_of_a_plan(name):
    (shape, share), case = SHAPES[name], Case(1, "full")
    found, wanted = (
        slope(LENGTHS, [each(case, length, shape) for length in LENGTHS])
        for each in (lambda *given: peak(*given, real=True), planned)
    )
    assert found == pytest.approx(wanted, rel=share)
