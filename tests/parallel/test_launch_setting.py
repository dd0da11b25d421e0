"""A value of the launcher's configuration, with its place."""

from __future__ import annotations

import pytest

from llmkit.parallel.launch_setting import LaunchSetting


@pytest.mark.parametrize(
    ("value", "number"),
    [("2", 2.0), (5e8, 5e8), ("0.5", 0.5), (True, 1.0), ("two", None), (None, None), ([1], None)],
)
def test_its_number(value: object, number: float | None) -> None:
    assert LaunchSetting("zero_stage", value, "VARIABLE").number == number


def test_it_is_shown_as_json_would_write_it_with_its_place() -> None:
    assert str(LaunchSetting("overlap_comm", True, "ds.json:3")) == "overlap_comm true (ds.json:3)"
    mistake = LaunchSetting("zero_stage", 7, "ds.json:2").mistake("the stages are 0, 1, 2 and 3")
    assert mistake.location == "ds.json:2"
    assert mistake.what == (
        "accelerate's configuration says zero_stage 7 (ds.json:2); the stages are 0, 1, 2 and 3"
    )
