"""The values of each step, as factors of those that are configured."""

from __future__ import annotations

import pytest

from llmkit.config.optimizer_section import Schedule
from llmkit.config.schema import Config
from llmkit.optim.schedule import Pace, lr_factor, step_values

SOURCES = {"sources": [{"type": "stdlib"}]}


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


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear", "constant"])
def test_a_run_that_is_shortened_goes_through_the_rest_of_its_schedule(name):
    """At step 60 of 100, with 20 steps left instead of 40: every second value of the 40."""
    config = Config.model_validate(
        {"data": SOURCES, "schedule": {"name": name, "warmup_steps": 10, "min_lr_ratio": 0.1}}
    )
    pace = Pace(60, 60, 100)
    shortened = [step_values(s, 80, config, pace).learning_rate for s in range(61, 81)]
    planned = [step_values(s, 100, config).learning_rate for s in range(62, 101, 2)]
    assert shortened == pytest.approx(planned)


def test_a_schedule_with_steps_of_its_own_keeps_its_pace():
    config = Config.model_validate({"data": SOURCES, "schedule": {"steps": 100, "warmup_steps": 10}})
    assert step_values(70, 80, config, Pace(60, 60, 100)) == step_values(70, 100, config)


def test_the_momentum_rises_to_what_is_configured():
    optimizer = {"name": "muon", "momentum": 0.95, "momentum_start": 0.75, "momentum_warmup_steps": 20}
    config = Config.model_validate({"data": SOURCES, "optimizer": optimizer, "schedule": {"warmup_steps": 2}})
    momenta = {step: 0.95 * step_values(step, 100, config).momentum for step in (1, 6, 16, 21, 22, 100)}
    assert momenta == pytest.approx({1: 0.75, 6: 0.80, 16: 0.90, 21: 0.95, 22: 0.95, 100: 0.95})
    constant = Config.model_validate({"data": SOURCES})
    assert {step_values(step, None, constant).momentum for step in (1, 2, 50)} == {1.0}
    values = step_values(1, 100, config)
    assert (values.learning_rate, values.weight_decay) == (0.5, 1.0)


def test_the_average_forgets_the_first_steps_and_then_as_is_configured():
    def shares(steps, batch=8, **ema):
        train = {"ema": ema, "global_batch_size": batch}
        data = {**SOURCES, "sequence_length": 128}
        config = Config.model_validate({"data": data, "train": train})
        return [step_values(step, None, config).ema for step in steps]

    assert shares((1, 2, 50)) == [0.0, 0.0, 0.0]
    assert shares((1, 2, 8, 81, 82, 5000), decay=0.9) == pytest.approx(
        [9 / 11, 9 / 12, 9 / 18, 0.1, 0.1, 0.1]
    )
    every = shares(range(1, 13), decay=0.9, every_steps=4)
    assert every == pytest.approx([0, 0, 0, 9 / 11, 0, 0, 0, 9 / 12, 0, 0, 0, 9 / 13])
    assert shares((4000,), decay=0.9, every_steps=4) == pytest.approx([1 - 0.9**4])
    half = 64 * 8 * 128  # 64 steps; of twice the batch 32
    (share,), (twice,) = (shares((10**6,), batch, half_life_tokens=half) for batch in (8, 16))
    assert (1 - share) ** 64 == pytest.approx(0.5) and (1 - twice) ** 32 == pytest.approx(0.5)
