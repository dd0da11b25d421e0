"""What is left of whole steps, beside the operations that are timed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.calibration.primitives import How, measured_rates
from llmkit.calibration.steps import SAMPLES, Sample, fitted, gpt, plan_of, predicted, step_of, workload
from llmkit.kernels.operators import Operators
from llmkit.plan import DeviceFacts
from tests.estimate.test_calibration import RATES

WORKS = {sample.name: workload(plan_of(sample, "fp32", DeviceFacts(), False)) for sample in SAMPLES}


@pytest.mark.parametrize(("byte", "kernel"), [(3e-11, 1e-5), (0.0, 2e-5), (5e-11, 0.0)])
def test_the_fit_finds_what_steps_are_made_of(byte: float, kernel: float) -> None:
    bare = replace(RATES, byte=0.0, kernel=0.0)
    true = replace(RATES, byte=byte, kernel=kernel)
    seconds = {name: predicted(work, true) for name, work in WORKS.items()}
    found = fitted(bare, WORKS, seconds)
    assert (found.byte, found.kernel) == pytest.approx((byte, kernel), abs=1e-13)


def test_the_fit_is_never_negative() -> None:
    bare = replace(RATES, byte=0.0, kernel=0.0)
    seconds = {name: predicted(work, bare) * (0.9 if name == "wide" else 1.3) for name, work in WORKS.items()}
    found = fitted(bare, WORKS, seconds)
    assert found.byte >= 0
    assert found.kernel >= 0
    assert found.byte + found.kernel > 0


def test_what_is_timed_is_a_step_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TOKENS": (8, 16), "WIDTHS": (8, 16), "LENGTHS": (8, 16), "PARAMETERS": 64}.items():
        monkeypatch.setattr(f"llmkit.calibration.primitives.{name}", value)
    sample = Sample("tiny", gpt(48, 1, 2, 64), 16, 2, micro_batches=2)
    plan = plan_of(sample, "fp32", DeviceFacts(), False)
    step = step_of(plan)
    before = step()
    after = step()
    assert float(after.loss_sum) < float(before.loss_sum)  # type: ignore[attr-defined]
    how = How(Operators.of(plan.kernels.forms), torch.float32, compiled=False)
    rates = measured_rates(how)
    assert len(rates.products) == 8
    assert len(rates.attentions) == 4
    assert all(value > 0 for row in (*rates.products, *rates.attentions) for value in row[:3])
    assert rates.parameter > 0
    assert rates.gradient > 0
