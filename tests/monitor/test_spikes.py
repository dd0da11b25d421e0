"""Spikes of loss and gradient norm: found where they are, and nowhere else."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from llmkit.monitor.spikes import Spike, SpikeDetector


def curve(steps: int, seed: int = 0) -> list[tuple[int, float, float]]:
    """Loss and gradient norm of an ordinary run: falling, with noise of a few percent and of factors."""
    draw = random.Random(seed)
    return [
        (step, 2.0 + 4.0 / (1 + step / 50) + draw.gauss(0.0, 0.05), math.exp(draw.gauss(-0.5, 0.3)))
        for step in range(1, steps + 1)
    ]


def found(values: list[tuple[int, float, float]], detector: SpikeDetector | None = None) -> list[Spike]:
    detector = detector or SpikeDetector(50, 6.0)
    return [spike for each in values if (spike := detector.add(*each)) is not None]


@pytest.mark.parametrize("seed", range(5))
def test_an_ordinary_run_has_none(seed: int) -> None:
    assert found(curve(2000, seed)) == []


def test_a_spike_of_the_loss_is_named_once_with_its_robust_z() -> None:
    values = curve(400)
    for step in range(301, 306):
        values[step - 1] = (step, 4.5, 0.7)
    (spike,) = found(values)
    before = [loss for _, loss, _ in values[250:300]]
    median = statistics.median(before)
    spread = statistics.median(abs(loss - median) for loss in before)
    assert (spike.step, spike.of, spike.value) == (301, "loss", 4.5)
    assert spike.median == pytest.approx(median)
    assert spike.z == pytest.approx((4.5 - median) / (1.4826 * spread))


def test_a_spike_of_the_gradient_alone_is_named() -> None:
    values = curve(400)
    values[299] = (300, values[299][1], 60.0)
    (spike,) = found(values)
    norms = [math.log(norm) for _, _, norm in values[249:299]]
    assert (spike.step, spike.of, spike.value) == (300, "grad_norm", 60.0)
    assert spike.median == pytest.approx(math.exp(statistics.median(norms)))


def test_losses_that_hardly_vary_are_no_spikes_for_a_small_rise() -> None:
    steady = [(step, 3.0 + 1e-5 * (step % 3), 1.0) for step in range(1, 101)]
    assert found([*steady, (101, 3.1, 1.0)]) == []
    assert [spike.step for spike in found([*steady, (101, 3.2, 1.0)])] == [101]


def test_none_in_the_warm_up_nor_before_the_window_is_full_nor_where_it_is_off() -> None:
    values = [(step, 9.0 if step == 30 else 3.0, 1.0) for step in range(1, 81)]
    assert found(values, SpikeDetector(50, 6.0)) == []
    assert [spike.step for spike in found(values, SpikeDetector(20, 6.0))] == [30]
    assert found(values, SpikeDetector(20, 6.0, warmup_steps=30)) == []
    assert found(values, SpikeDetector(20, 0.0)) == []


def test_what_is_not_finite_is_passed_over() -> None:
    values = [(step, 3.0, 1.0) for step in range(1, 31)]
    values[25] = (26, math.nan, math.inf)
    assert found([*values, (31, 6.0, 1.0)], SpikeDetector(20, 6.0))[0].step == 31


@pytest.mark.parametrize("stop", [10, 120, 251, 303])
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_happened(stop: int) -> None:
    values = curve(400)
    for step in (300, 301, 302, 303, 304):
        values[step] = (step + 1, 5.0, 1.0)
    straight = found(values)
    first, second = SpikeDetector(50, 6.0), SpikeDetector(50, 6.0)
    before = found(values[:stop], first)
    second.load_state(json.loads(json.dumps(first.state())))
    assert before + found(values[stop:], second) == straight != []
    third = SpikeDetector(50, 6.0)
    third.load_state({})
    assert third.state() == SpikeDetector(50, 6.0).state()
