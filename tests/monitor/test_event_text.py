"""Events in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import llmkit
from llmkit.monitor.event_text import TEXTS, event_text

DESIGN = (Path(llmkit.__file__).parents[1] / "docs/design.md").read_text()


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"event": "save", "step": 500, "path": "step-00000500"}, "saved step 500"),
        ({"event": "stop", "step": 7, "reason": "SIGTERM"}, "stopped: SIGTERM"),
        ({"event": "save"}, "saved step ?"),
        ({"event": "max_steps", "max_steps": 3136, "reserved_seconds": 10.2}, "max_steps is 3,136"),
        ({"event": "loss_spike", "step": 12, "of": "grad_norm"}, "spike of grad_norm at step 12"),
        ({"event": "stall"}, "stall"),
        ({}, "?"),
        ({"event": "fault", "reason": "a\nb {step} \x1b[2J"}, r"FAULT: a b {step} \x1b[2J"),
    ],
)
def test_what_happened_is_one_line_that_moves_no_cursor(event: dict[str, object], text: str) -> None:
    assert event_text(event) == text


def test_a_long_reason_is_cut() -> None:
    assert len(event_text({"event": "fault", "reason": "x" * 5000})) == 300


def test_there_are_words_for_no_other_events_than_the_design_names() -> None:
    table = DESIGN.split("## events.jsonl")[1].split("\n\n")[2]
    first = " ".join(line.split("|")[1] for line in table.splitlines())
    assert set(TEXTS) <= set(re.findall(r"`(\w+)`", first))
