"""The law of a ladder: found again where it holds, and honest where there is noise."""

from __future__ import annotations

import random

import pytest

from llmkit.recipes.fit import Law, fit, interval

FLOPS = [1e13, 4e13, 1.6e14, 6.4e14]
NEXT = 2.56e15


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"), [(1.7, 2.4, 0.15), (0.0, 4.0, 0.06), (1.0, 1.5, 0.3), (2.5, 0.5, 0.5)]
)
def test_a_law_is_found_again_and_predicts_the_next_size(floor, scale, exponent):
    truth = Law(floor, scale, exponent, 1e14)
    found = fit(FLOPS, [truth.loss(flops) for flops in FLOPS])
    assert found.loss(NEXT) == pytest.approx(truth.loss(NEXT), rel=2e-3)
    assert found.exponent == pytest.approx(exponent, rel=0.05)


def test_three_runs_suffice_and_their_unit_does_not_matter():
    truth = Law(1.5, 2.0, 0.2, 1e14)
    losses = [truth.loss(flops) for flops in FLOPS[:3]]
    found = fit(FLOPS[:3], losses)
    scaled = fit([flops * 1e-9 for flops in FLOPS[:3]], losses)
    assert found.loss(FLOPS[3]) == pytest.approx(truth.loss(FLOPS[3]), rel=2e-3)
    assert scaled.loss(FLOPS[3] * 1e-9) == pytest.approx(found.loss(FLOPS[3]))


def test_one_run_that_went_wrong_moves_the_law_little():
    """The Huber loss: five of six runs count."""
    truth = Law(1.5, 2.0, 0.2, 1e14)
    flops = [1e13 * 3**k for k in range(6)]
    losses = [truth.loss(c) for c in flops]
    losses[2] *= 1.10
    assert fit(flops, losses).loss(3**6 * 1e13) == pytest.approx(truth.loss(3**6 * 1e13), rel=5e-3)


def test_losses_that_grow_are_fitted_by_a_constant():
    found = fit(FLOPS, [2.0, 2.1, 2.2, 2.3])
    assert found.scale == 0.0 and 2.0 <= found.floor <= 2.3


def test_most_intervals_hold_the_loss_that_comes():
    truth, noise, held = Law(1.5, 2.0, 0.2, 1e14), random.Random(1), 0
    for _ in range(6):
        losses = [truth.loss(c) * (1.0 + noise.gauss(0.0, 0.003)) for c in FLOPS]
        low, high = interval(FLOPS, losses, NEXT)
        held += low <= truth.loss(NEXT) <= high
        assert low <= high
    assert held >= 4
