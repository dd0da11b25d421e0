"""Time limits that leave no time to train."""

from __future__ import annotations

import pytest

from llmkit.cluster.script import template
from llmkit.cluster.time_limit import _seconds, too_short


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400), ("5:30", 330), ("24:00:00", 86_400), ("2-12", 216_000), ("1-02:03", 93_780),
        ("1-02:03:04", 93_784), ("0", None), ("0:00", None), ("UNLIMITED", None), ("", None),
    ],
)  # fmt: skip
def test_forms_of_time_limits(limit: str, seconds: int | None) -> None:
    assert _seconds(limit) == seconds


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"time": "2"}, 120),
        ({"time": "3:00"}, 120),
        ({"time": "10", "signal": "B:USR1@600"}, 600),
        ({"time": "2", "signal": "B:USR1"}, 60),
    ],
)
def test_a_limit_before_the_warning_is_found(options: dict[str, str], warning: int) -> None:
    found = str(too_short(template(), options))
    assert found.startswith(f"--time: {options['time']} is ")
    assert f"warns the run {warning} seconds before" in found and f"more than {warning + 60} seconds" in found


@pytest.mark.parametrize(
    "options",
    [{}, {"time": "3:01"}, {"time": "2", "signal": "B:USR1@30"}, {"time": "0"}, {"signal": None}],
)
def test_others_are_not(options: dict[str, str | None]) -> None:
    assert too_short(template(), options) is None
