"""Rows as lines."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.monitor.flops import bits_per_byte
from llmkit.monitor.row_text import row_text

ROW = {
    "step": 20,
    "loss": 4.56789,
    "tokens_per_second": 12345.6,
    "step_seconds": 0.5,
    "mfu": 0.4123,
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize(
    ("row", "steps", "text", "kind"),
    [
        (ROW, 200, "step  20/200  loss 4.5679  12.3k tokens/s  1 min 30 s left  MFU 41.2 %", "step"),
        (ROW, None, "step 20  loss 4.5679  12.3k tokens/s  MFU 41.2 %", "step"),
        (
            {"step": 20, "eval_loss": 4.25, "eval_bits_per_byte": 1.5},
            200,
            "step  20/200  held-out loss 4.2500  bits per byte 1.5000",
            "evaluation",
        ),
        (
            {"step": 20, "eval_loss": 4.25, "eval_bits_per_byte": bits_per_byte(85.0, text_bytes=0)},
            200,
            "step  20/200  held-out loss 4.2500  bits per byte none (the held-out tokens stand for no text)",
            "evaluation",
        ),
        (
            {"step": 5, "eval_loss": 0.6, "eval_bits_per_byte": None, "eval_rewards/accuracy": 0.75},
            None,
            "step 5  held-out loss 0.6000  accuracy 75.0 %",
            "evaluation",
        ),
        ({"step": 5, "eval/lambada/acc": 0.31}, None, "step 5  lambada/acc 0.31", "evaluation"),
        (
            {"step": 3, "loss": None, "skipped": True, "mfu": None},
            None,
            "step 3  loss not finite  update skipped",
            "warning",
        ),
        ({"step": 3, "loss": None, "no_targets": True}, None, "step 3  no targets", "warning"),
        (
            {"step": 4, "loss": None, "loss_mean": 2.5, "no_targets": True},
            None,
            "step 4  loss 2.5000  no targets",
            "warning",
        ),
        ({"step": 1, "loss": 9.0, "loss_mean": 9.5, "mfu": None}, None, "step 1  loss 9.5000", "step"),
        ({"step": 2, "loss": 8.0, "loss_mean": None}, None, "step 2  loss 8.0000", "step"),
        ({"step": 7, "loss": 1.0}, 7, "step 7/7  loss 1.0000", "step"),
    ],
)
def test_a_row_is_a_line_that_says_what_was_not_as_it_should_be(
    row: dict[str, Any], steps: int | None, text: str, kind: str
) -> None:
    assert row_text(row, steps) == (text, kind)


def test_a_row_of_statistics_has_no_line() -> None:
    assert row_text({"step": 20, "grad_norm/blocks.0": 0.5, "update_ratio": 1e-3}, 200) is None
