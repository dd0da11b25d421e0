"""Patterns of names of parameters."""

from __future__ import annotations

import pytest

from llmkit.config.patterns import kinds_of, matches, nearest


@pytest.mark.parametrize(
    ("pattern", "name", "does"),
    [
        ("blocks.*.mlp.*", "blocks.11.mlp.up_proj.weight", True),
        ("blocks.?.mlp.*", "blocks.11.mlp.up_proj.weight", False),
        ("blocks.[02].*", "blocks.2.attention_norm.weight", True),
        ("norm.weight", "blocks.0.mlp_norm.weight", False),
        ("*norm.weight", "norm.weight", True),
        ("embedding", "embedding.weight", False),
    ],
)
def test_patterns(pattern, name, does):
    assert matches(pattern, name) is does


def test_kinds_have_a_star_for_each_number() -> None:
    names = ["blocks.0.mlp.up_proj.weight", "blocks.11.mlp.up_proj.weight", "embedding.weight"]
    assert kinds_of(names) == ["blocks.*.mlp.up_proj.weight", "embedding.weight"]


def test_a_pattern_without_a_match_is_shown_what_resembles_it() -> None:
    names = ["blocks.0.mlp.up_proj.weight", "embedding.weight"]
    assert nearest("embeddings.weight", names) == "did you mean embedding.weight?"
    assert nearest("?", names) == "the parameters are blocks.*.mlp.up_proj.weight and embedding.weight"
