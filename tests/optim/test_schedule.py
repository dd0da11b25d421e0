"""The learning rate at each step, as a share of its peak."""

from __future__ import annotations

import pytest

from llmkit.config.schema import Schedule
from llmkit.optim.schedule import share_at


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"name": "constant", "warmup_steps": 4}, {1: 0.25, 4: 1.0, 5: 1.0, 100: 1.0}),
        ({"name": "linear", "warmup_steps": 10, "final_share": 0.1}, {5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1}),
        ({"name": "cosine", "warmup_steps": 0, "final_share": 0.0}, {25: 0.853553, 50: 0.5, 100: 0.0}),
        ({"name": "cosine", "warmup_steps": 20, "final_share": 0.2}, {20: 1.0, 60: 0.6, 100: 0.2, 101: 0.2}),
        ({"name": "wsd", "warmup_steps": 10, "final_share": 0.0}, {10: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        ({"name": "wsd", "warmup_steps": 95, "final_share": 0.0, "decay_share": 0.2}, {95: 1.0, 100: 0.0}),
        ({"name": "cosine", "warmup_steps": 200, "final_share": 0.0}, {100: 0.5}),
    ],
)  # fmt: skip
def test_shares(settings, shares):
    schedule = Schedule(**settings)
    assert {step: share_at(step, 100, schedule) for step in shares} == pytest.approx(shares)


def test_the_end_does_not_show_before_the_decay():
    schedule = Schedule(warmup_steps=50)
    assert [share_at(s, 10**9, schedule) for s in range(1, 51)] == [
        share_at(s, 700, schedule) for s in range(1, 51)
    ]
