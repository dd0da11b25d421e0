"""The rules: anchored where they were measured, smooth between, and exact in what they count."""

from __future__ import annotations

import dataclasses
import math

import pytest

from llmkit.errors import UserError
from llmkit.monitor.flops import train_flops_per_token
from llmkit.recipes import recipe
from llmkit.recipes.rules import (
    Text,
    best_batch,
    budget,
    by_depth,
    by_flops,
    by_parameters,
    counted_parameters,
    head_dim,
    weight_decay,
)

TEXT = Text()


@pytest.mark.parametrize(
    ("depth", "width", "vocabulary", "context"),
    [
        (1, 64, 2048, 128),
        (3, 192, 4096, 256),
        (6, 384, 8192, 512),
        (12, 768, 16384, 1024),
        (20, 1280, 32768, 2048),
    ],
)
def test_a_depth_gives_width_vocabulary_and_context(depth, width, vocabulary, context):
    size = by_depth(depth, TEXT)
    assert (size.width, size.vocab_size, size.sequence_length) == (width, vocabulary, context)


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 7, 12, 16, 17, 26, 50, 121])
def test_every_width_is_whole_heads_near_the_usual(depth):
    size = by_depth(depth, TEXT)
    assert size.width % size.head_dim == 0 and size.width >= size.head_dim
    assert abs(size.width - recipe.WIDTH_PER_LAYER * depth) <= head_dim(size.width) / 2
    assert size.shape.num_attention_heads * size.shape.head_dim == size.width


def test_text_that_is_given_is_not_chosen():
    size = by_depth(12, Text(50257, 4096))
    assert (size.shape.vocab_size, size.sequence_length) == (50257, 4096)


@pytest.mark.parametrize("parameters", [1e6, 2.4e6, 14e6, 124e6, 355e6, 1e9, 30e9])
def test_parameters_are_met(parameters):
    size = by_parameters(parameters, TEXT)
    assert size.shape.num_parameters == pytest.approx(parameters, rel=0.25)
    assert size.depth <= 3 or 48 <= size.width / size.depth <= 80


@pytest.mark.parametrize("flops", [1e14, 1e16, 1e18, 1e19, 3e20, 1e22])
def test_flops_are_met_by_the_optimal_training_of_a_size(flops):
    size = by_flops(flops, TEXT)
    assert budget(size).flops == pytest.approx(flops, rel=0.35)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: by_depth(0, TEXT), "--depth is 0; it must be from 1 to 128"),
        (lambda: by_depth(-3, TEXT), "--depth is -3"),
        (lambda: by_depth(300, TEXT), "--depth is 300"),
        (
            lambda: by_parameters(100.0, TEXT),
            "--params asks for 100; the smallest model of this family has .*: ask for more",
        ),
        (lambda: by_flops(1e40, TEXT), "--flops asks for 1e[+]40; the largest model of this family"),
    ],
)
def test_what_the_family_does_not_have_is_refused(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_tokens_and_flops_are_those_of_the_steps():
    size = by_depth(4, TEXT)
    trained = budget(size)
    assert trained.tokens == trained.steps * trained.rows * size.sequence_length
    assert trained.tokens / counted_parameters(size.shape) == pytest.approx(
        recipe.TOKENS_PER_PARAMETER, rel=0.01
    )
    assert trained.flops == trained.tokens * train_flops_per_token(size.shape, size.sequence_length)
    assert math.log2(trained.rows).is_integer()


def test_counted_parameters_are_blocks_matrices_and_head():
    """The head counts where it is the embedding, too; tables that are only looked up in do not."""
    shape = by_depth(4, TEXT).shape
    matrices = 4 * (4 * 256 * 256 + 2 * 256 * 4 * 256)
    assert counted_parameters(shape) == matrices + shape.vocab_size * 256
    changed = {"tie_word_embeddings": not shape.tie_word_embeddings, "value_embeddings": False}
    assert counted_parameters(dataclasses.replace(shape, **changed)) == counted_parameters(shape)


def test_the_batch_is_the_published_one_where_that_was_measured():
    assert best_batch(recipe.BATCH_AT_TOKENS) == 2**19
    assert best_batch(10 * recipe.BATCH_AT_TOKENS) / 2**19 == pytest.approx(10**0.383)


def test_small_runs_have_a_smaller_batch_so_that_there_are_steps():
    assert best_batch(2.8e6) == 2.8e6 / recipe.LEAST_STEPS
    sizes = [by_depth(depth, TEXT) for depth in range(1, 40)]
    trained = [budget(size) for size in sizes]
    assert all(each.steps >= recipe.LEAST_STEPS - 1 for each in trained)
    rows = [each.rows * size.sequence_length for each, size in zip(trained, sizes)]
    assert rows == sorted(rows)


def test_decay_spans_the_same_share_of_a_run():
    assert weight_decay(recipe.MATRICES.value, recipe.STEPS) == pytest.approx(recipe.WEIGHT_DECAY)
    assert weight_decay(1e-3, 20_000) * 1e-3 * 20_000 == pytest.approx(
        weight_decay(4e-3, 1_000) * 4e-3 * 1_000
    )


def test_rates_are_those_of_the_reference_at_its_width():
    assert recipe.MATRICES.at(recipe.WIDTH) == recipe.MATRICES.value
    assert recipe.MATRICES.at(4 * recipe.WIDTH) == pytest.approx(
        recipe.MATRICES.value * 4**recipe.MATRICES.exponent
    )
