"""A row of metrics.jsonl as a line of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from llmkit.monitor.progress import shown_loss
from llmkit.monitor.text import duration, number, shown_bits, thousands

Kind = Literal["step", "evaluation", "warning"]


class RowText(NamedTuple):
    """A line. kind: "warning" = of a step that was not as it should be."""

    text: str
    kind: Kind


def row_text(row: Mapping[str, Any], max_steps: int | None = None) -> RowText | None:
    """The line of a row: of a step, of an evaluation, or of an evaluation by tasks; None for statistics."""
    counted = f"step {row['step']}"
    if max_steps is not None:
        counted = f"step {row['step']:>{len(str(max_steps))}}/{max_steps}"
    if "eval_loss" in row:
        return RowText("  ".join([counted, *_evaluation(row)]), "evaluation")
    if "loss" not in row:
        found = {name[5:]: value for name, value in row.items() if name.startswith("eval/")}
        if not found:
            return None
        return RowText(
            "  ".join([counted, *(f"{name} {number(value, '.4g')}" for name, value in found.items())]),
            "evaluation",
        )
    odd = row["loss"] is None or row.get("skipped") or row.get("no_targets")
    return RowText("  ".join([counted, *_step(row, max_steps)]), "warning" if odd else "step")


def _evaluation(row: Mapping[str, Any]) -> Iterator[str]:
    """No bits per byte where no text is held out; of pairs of answers the share whose better one is known."""
    yield f"held-out loss {number(row['eval_loss'], '.4f')}"
    accuracy = row.get("eval_rewards/accuracy")
    if accuracy is None:
        yield f"bits per byte {shown_bits(row.get('eval_bits_per_byte'))}"
    else:
        yield f"accuracy {100 * accuracy:.1f} %"


def _step(row: Mapping[str, Any], max_steps: int | None) -> Iterator[str]:
    """Most important first."""
    loss = shown_loss(row)
    if loss is not None or not row.get("no_targets"):
        yield f"loss {number(loss, '.4f')}"
    if row.get("no_targets"):
        yield "no targets"
    if row.get("skipped"):
        yield "update skipped"
    if row.get("expert_load_max") is not None:
        dropped = row.get("expert_dropped")
        yield f"loads up to {row['expert_load_max']:.1f} x mean" + (
            "" if dropped is None else f", {100 * dropped:.1f} % dropped"
        )
    if row.get("tokens_per_second") is not None:
        yield f"{thousands(row['tokens_per_second'])} tokens/s"
    if max_steps is not None and row.get("step_seconds") is not None:
        yield f"{duration((max_steps - row['step']) * row['step_seconds'])} left"
    if row.get("mfu") is not None:
        yield f"MFU {100 * row['mfu']:.1f} %"
