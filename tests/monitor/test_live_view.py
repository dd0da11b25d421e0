"""The live view at the sizes that terminals have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from llmkit.monitor.live_view import Frame, live_view
from llmkit.monitor.progress import Progress
from llmkit.monitor.sparkline import BLOCKS

NOW = datetime(2026, 11, 29, 14, 30, tzinfo=UTC)


def demo(**more: Any) -> Progress:
    """A run in its midst."""
    progress = Progress("demo", 3136, save_every=500, evaluate_every=500, currency="EUR")
    for step in range(25, 1250, 25):
        progress.take(
            {
                "step": step,
                "loss": 8.0 / (1 + step / 200),
                "loss_mean": 8.0 / (1 + step / 200),
                "step_seconds": 0.08,
                "tokens_per_second": 26000.0,
                "mfu": 0.579,
                "peak_memory_gib": 1.234,
                "learning_rate": 9.21e-3,
            }
            | more
        )
    progress.take({"step": 500, "eval_loss": 3.1779, "eval_bits_per_byte": 1.2288})
    progress.take({"step": 1000, "eval_loss": 2.9093, "eval_bits_per_byte": 1.1249})
    progress.take_event({"event": "save", "step": 1000, "time": "2026-11-29T14:28:03+00:00"})
    progress.step = 1240
    return progress


def shown(progress: Progress, width: int, height: int = 24, **more: Any) -> list[str]:
    return [line.plain for line in live_view(progress, Frame(width, height, NOW, **more))]


def without_drawings(lines: list[str]) -> list[str]:
    """Bars and curves as one character each."""
    for letter in "━─" + BLOCKS:
        lines = [line.replace(letter, "~") for line in lines]
    return [" ".join("~" if set(word) == {"~"} else word for word in line.split()) for line in lines]


def test_of_pairs_the_accuracy_is_shown() -> None:
    progress = demo()
    progress.take({"step": 1240, "eval_loss": 0.5, "eval_rewards/accuracy": 0.875})
    assert "held-out 0.5000 at 1,240, the best   accuracy 87.5 %" in shown(progress, 100)[1]


def test_at_120_columns_everything_is_there() -> None:
    lines = shown(demo(cost=0.0312, energy_kwh=0.0123), 120)
    assert without_drawings(lines) == [
        "demo ~ 1,240/3,136 39.5 % 2 min 32 s left ends 14:32",
        "loss 1.1228 ~ held-out 2.9093 at 1,000, the best bits per byte 1.1249",
        "26.0k tokens/s MFU 57.9 % memory 1.2 GiB cost 0.03 of about 0.08 EUR energy 0.0123 kWh "
        "learning rate 0.00921",
        "evaluation in 21 s save in 21 s saved step 1,000, 14:28",
    ]
    assert len(lines[0]) == 119


def test_at_80_columns_nothing_that_matters_is_missing() -> None:
    assert without_drawings(shown(demo(cost=0.0312), 80)) == [
        "demo ~ 1,240/3,136 39.5 % 2 min 32 s left ends 14:32",
        "loss 1.1228 ~ held-out 2.9093 at 1,000, the best",
        "26.0k tokens/s MFU 57.9 % memory 1.2 GiB cost 0.03 of about 0.08 EUR",
        "evaluation in 21 s save in 21 s saved step 1,000, 14:28",
    ]


def test_at_40_columns_the_most_important_is_left() -> None:
    lines = without_drawings(shown(demo(), 40))
    assert lines[0] == "1,240/3,136 2 min 32 s left"
    assert lines[1].startswith("loss 1.1228")
    assert lines[2].startswith("26.0k tokens/s MFU 57.9 %")


@pytest.mark.parametrize("width", [1, 2, 10, 20, 40, 61, 79, 80, 120, 300])
@pytest.mark.parametrize("name", ["demo", "a-name-" * 40, "模型" * 30])
def test_no_line_is_as_wide_as_the_terminal(width: int, name: str) -> None:
    progress = demo()
    progress.name = name
    progress.take_event({"event": "fault", "reason": "x " * 200})
    for line in live_view(progress, Frame(width, 24, NOW)):
        assert 0 < line.cell_len <= max(1, width - 1)


@pytest.mark.parametrize(("height", "lines"), [(1, 1), (3, 1), (5, 1), (6, 2), (8, 3), (10, 4), (50, 4)])
def test_a_low_terminal_gets_fewer_lines(height: int, lines: int) -> None:
    assert len(shown(demo(), 80, height)) == lines


def test_the_bar_is_as_full_as_the_run_is_far() -> None:
    progress = demo()
    for step, share in ((0, 0.0), (1568, 0.5), (3136, 1.0), (9999, 1.0)):
        progress.step = step
        line = shown(progress, 100)[0]
        full, rest = line.count("━"), line.count("─")
        assert full / (full + rest) == pytest.approx(share, abs=0.02)


def test_before_anything_is_known_there_is_one_line() -> None:
    assert shown(Progress("demo"), 80) == ["demo   step 0"]
    assert without_drawings(shown(Progress("demo", 10), 80, activity="compiling, 12 s")) == [
        "demo ~ 0/10 0.0 %",
        "compiling, 12 s",
    ]


def test_what_goes_on_beside_steps_takes_the_place_of_what_comes_next() -> None:
    lines = shown(demo(), 80, activity="evaluating, 12 s")
    assert lines[3].split("   ") == ["evaluating, 12 s", "saved step 1,000, 14:28"]


def test_a_run_that_does_not_train_has_a_state_and_nothing_to_come() -> None:
    lines = shown(demo(), 80, state="stopped")
    assert lines[0].endswith("stopped") and "left" not in lines[0]
    assert lines[3] == "saved step 1,000, 14:28"


def test_what_is_wrong_with_a_step_is_in_the_view() -> None:
    assert shown(demo(skipped=True), 80)[1].startswith("loss 1.1228, update skipped")
    assert shown(demo(loss=None, loss_mean=None), 80)[1].startswith("loss not finite")
    assert shown(demo(loss=None, loss_mean=None, no_targets=True), 80)[1].startswith("no targets")


def test_an_evaluation_that_is_not_the_best_shows_the_best_too() -> None:
    progress = demo()
    progress.take({"step": 1240, "eval_loss": 3.5, "eval_bits_per_byte": None})
    assert shown(progress, 120)[1].endswith("held-out 3.5000 at 1,240   best 2.9093 at 1,000")
    progress.take({"step": 1240, "eval_loss": None, "eval_bits_per_byte": None})
    assert "held-out not finite at 1,240" in shown(progress, 120)[1]


def test_a_terminal_without_blocks_gets_ascii() -> None:
    assert "".join(shown(demo(), 120, ascii=True)).isascii()


def test_a_far_end_has_no_time_of_day() -> None:
    progress = demo(step_seconds=1e6)
    assert shown(progress, 120)[0].endswith("d 10 h left")
