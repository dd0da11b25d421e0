"""Timing in turns."""

from __future__ import annotations

from llmkit.calibration.turns import seconds_in_turns


def test_pieces_take_turns_and_short_ones_are_repeated() -> None:
    calls: list[str] = []

    def long() -> None:
        calls.append("long")
        sum(range(200_000))

    def short() -> None:
        calls.append("short")

    found = seconds_in_turns({"long": long, "short": short}, rounds=3)
    assert found["long"] > 20 * found["short"] > 0
    turns = [name for name, before in zip(calls, [None, *calls[:-1]], strict=True) if name != before]
    assert turns == ["long", "short"] * 4  # the first of them finds out how often a round repeats each
    assert calls.count("short") > 10 * calls.count("long")
