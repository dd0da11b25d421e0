"""What a run is expected to take, and the likely cause where it takes longer."""

from __future__ import annotations

import re

import pytest

from llmkit.estimate.forecast import Measured, comparison, likely_cause, show, sums_of
from llmkit.estimate.step_time import StepEstimate
from llmkit.estimate.term import Term


def estimate(**parts: float) -> StepEstimate:
    terms = tuple(Term(name.replace("_", " "), value, "s", "") for name, value in parts.items())
    return StepEstimate(terms, (), 0.15, (), 1000, 2, 1e9, 1e9, 0.0, 1e13)


PLAIN = estimate(matmul=0.6, attention=0.2, gradients_and_weights=0.1, optimizer=0.1)


def measured(seconds: float, **more: float | None) -> Measured:
    values: dict[str, float | None] = {"data": 0.0, "other": 0.0, "communication": 0.1, "optimizer": 0.1}
    return Measured(50, seconds, **(values | more))  # type: ignore[arg-type]


def test_parts_are_grouped_as_a_run_can_tell_them_apart() -> None:
    found = sums_of(PLAIN)
    assert found == pytest.approx(
        {"computing": 0.8, "optimizer": 0.1, "recompute": 0.0, "launching": 0.0, "communication": 0.1}
    )
    assert sum(found.values()) == pytest.approx(PLAIN.seconds)


@pytest.mark.parametrize(
    ("step", "found", "cause"),
    [
        (PLAIN, measured(1.29), ""),
        (PLAIN, measured(0.72), ""),
        (PLAIN, measured(0.5), "the model of time is too slow"),
        (PLAIN, measured(2.0, data=0.9), r"waiting for data \(0.9 s a step\)"),
        (PLAIN, measured(2.0, other=0.7), "what is done between steps"),
        (PLAIN, measured(2.0, communication=0.9), "communication that no computing hides"),
        (PLAIN, measured(2.0, optimizer=0.9), "the update of the weights"),
        (PLAIN, measured(2.0, processor=0.5), "other processes: this one had 50% of its threads' time"),
        (PLAIN, measured(2.0, processor=0.95), "computing: the device is slower than assumed"),
        (PLAIN, measured(2.0, communication=None, optimizer=None), "computing: the device is slower"),
        (estimate(matmul=0.7, launching=0.3), measured(2.0), "the host, which starts many small kernels"),
        (estimate(matmul=0.7, recompute=0.3), measured(2.0), "recomputation"),
    ],
)
def test_the_likely_cause(step: StepEstimate, found: Measured, cause: str) -> None:
    assert re.match(cause or "$", likely_cause(step, found))


def test_the_event_has_both_and_what_they_are_made_of() -> None:
    fields = comparison(PLAIN, measured(2.0, data=0.9, optimizer=None))
    assert fields["predicted"] == pytest.approx(1.0)
    assert (fields["low"], fields["high"], fields["measured"]) == pytest.approx((0.85, 1.15, 2.0))
    assert (fields["difference"], fields["steps"]) == (1.0, 50)
    assert fields["measured_parts"] == {"data": 0.9, "other": 0.0, "communication": 0.1}
    assert sum(fields["predicted_parts"].values()) == pytest.approx(1.0)
    assert fields["cause"].startswith("waiting for data")
    assert comparison(PLAIN, measured(1.0))["cause"] is None


def test_a_line_for_the_start() -> None:
    assert show(PLAIN) == (
        "1 s a step (0.85 to 1.15), 500 tokens/s a device, MFU 5%; matmul 60%, attention 20%, "
        "gradients and weights 10%"
    )
