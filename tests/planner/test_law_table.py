"""A row of answers a law."""

from __future__ import annotations

import pytest

from llmkit.config.shape import ModelShape
from llmkit.estimate.scaling_laws import LAWS
from llmkit.planner.law_table import counted, law_rows

SHAPE = ModelShape(
    vocab_size=1000, padded_vocab_size=1024, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, head_dim=32, intermediate_size=256, max_position_embeddings=128,
)  # fmt: skip


def test_kaplan_counts_no_embeddings():
    assert counted(SHAPE, True) == SHAPE.num_parameters
    assert counted(SHAPE, False) == SHAPE.num_parameters - 64_000


def test_rows_answer_what_is_asked():
    rows = {row.law.name: row for row in law_rows(SHAPE, 1e9, loss=9.5)}
    assert list(rows) == [law.name for law in LAWS]
    one = rows["Chinchilla 1"]
    assert one.loss is one.tokens is one.wanted is None and one.best.parameters > 0
    fit = rows["Chinchilla 3, refitted"]
    assert fit.loss == pytest.approx(fit.law.loss(SHAPE.num_parameters, 1e9))
    assert fit.law.loss(SHAPE.num_parameters, fit.tokens) == pytest.approx(9.5)
    assert fit.wanted.loss == pytest.approx(9.5)
    assert fit.best.flops == pytest.approx(6e9 * SHAPE.num_parameters)
    assert law_rows(SHAPE, 1e9, flops=1e22)[3].best.flops == pytest.approx(1e22)
    assert fit.to_json()["best_to_loss"]["loss"] == pytest.approx(9.5)
