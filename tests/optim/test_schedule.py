"""The values of each step, as factors of those that are configured."""

from __future__ import annotations

import pytest

from llmkit.config.optimizer_section import Schedule
from llmkit.optim.schedule import lr_factor


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"name": "constant", "warmup_steps": 4}, {1: 0.25, 4: 1.0, 5: 1.0, 100: 1.0}),
        ({"name": "linear", "warmup_steps": 10, "min_lr_ratio": 0.1}, {5: 0.5, 10: 1.0, 55: 0.55, 100: 0.1}),
        ({"name": "cosine", "warmup_steps": 0, "min_lr_ratio": 0.0}, {25: 0.853553, 50: 0.5, 100: 0.0}),
        ({"name": "cosine", "warmup_steps": 20, "min_lr_ratio": 0.2}, {20: 1.0, 60: 0.6, 100: 0.2, 101: 0.2}),
        ({"name": "wsd", "warmup_steps": 10, "min_lr_ratio": 0.0}, {10: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        (
            {"name": "wsd", "warmup_steps": 10, "min_lr_ratio": 0.2, "decay_shape": "sqrt"},
            {80: 1.0, 85: 0.6, 100: 0.2, 101: 0.2},
        ),
        (
            {"name": "wsd", "min_lr_ratio": 0.0, "steps": 200, "decay_fraction": 0.5}
            | {"decay_shape": "cosine"},
            {50: 0.5, 100: 1.0, 125: 0.853553, 150: 0.5, 200: 0.0},
        ),
        ({"name": "wsd", "warmup_steps": 95, "min_lr_ratio": 0.0}, {95: 1.0, 100: 0.0}),
        ({"name": "cosine", "warmup_steps": 200, "min_lr_ratio": 0.0}, {100: 0.5}),
    ],
)  # fmt: skip
def test_shares(settings, shares):
    schedule = Schedule(**settings)
    assert {step: lr_factor(step, 100, schedule) for step in shares} == pytest.approx(shares)


def test_the_end_does_not_show_before_the_decay():
    schedule = Schedule(warmup_steps=50)
    assert [lr_factor(s, 10**9, schedule) for s in range(1, 51)] == [
        lr_factor(s, 700, schedule) for s in range(1, 51)
    ]
