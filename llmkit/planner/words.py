"""Figures and layouts in few letters, for tables."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from llmkit.config.memory import show_bytes
from llmkit.config.shape import ModelShape
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.term import Term
from llmkit.monitor.text import duration
from llmkit.plan.plan import Plan
from llmkit.recipes.document import amount

NARROWEST = 60
"""Columns of a terminal with less are not filled."""
LEAST_COLUMN = 16
"""Letters that a column of words has at least."""


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return max(NARROWEST, shutil.get_terminal_size((80, 24)).columns)


def wrapped(text: str, indent: str = "") -> list[str]:
    """A sentence as lines of the terminal's width. indent: of all lines but the first."""
    return textwrap.wrap(
        text, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def command(line: str) -> list[str]:
    """A command as lines for a shell, each but the last with a backslash at its end."""
    lines, now = list[str](), " "
    for word in map(shlex.quote, shlex.split(line)):
        if len(now) + len(word) + 3 > width() and now.strip():
            lines.append(f"{now} \\")
            now = "   "
        now += f" {word}"
    return [*lines, now]


def layout(plan: Plan) -> str:
    """As in "ZeRO-1 x 32, TP 2, selective, micro-batch 4"."""
    chosen = plan.layout
    how = f"ZeRO-{chosen.zero_stage}" if chosen.zero_stage else "DDP"
    how += " (DeepSpeed)" * (chosen.zero_stage == 1 and chosen.engine == "deepspeed")
    how += " (native)" * (chosen.zero_stage == 2 and chosen.engine == "native")
    alone = chosen.world_size == 1 and not chosen.zero_stage
    parts = ["one process" if alone else f"{how} x {chosen.data_parallel_size}"]
    if chosen.tensor_parallel_size > 1:
        parts.append(f"TP {chosen.tensor_parallel_size}")
    if chosen.context_parallel_size > 1:
        parts.append(f"CP {chosen.context_parallel_size} ({chosen.context_parallel_form})")
    if chosen.expert_parallel_size > 1:
        parts.append(f"EP {chosen.expert_parallel_size}")
    if chosen.offload != "none":
        parts.append("offload")
    if chosen.activation_checkpointing != "none":
        parts.append(chosen.activation_checkpointing)
    return ", ".join([*parts, f"micro-batch {plan.micro_batch_size}"])


def fleet(devices: Fleet) -> str:
    """As in "64 x h100 (8 nodes of 8; nvlink4 inside, ib-ndr between)"."""
    each = devices.devices_per_node
    nodes = f"{devices.nodes} nodes of {each}" if devices.nodes > 1 else "one node"
    links = [f"{devices.inside.name} inside"] * (each > 1)
    links += [f"{devices.between.name} between"] * (devices.nodes > 1)
    where = f"{nodes}; {', '.join(links)}" if links else nodes
    return f"{devices.size:,} x {devices.device.name} ({where})"


def model(plan: Plan) -> str:
    """As in "8.03B parameters, 32 layers of width 4,096"."""
    text = f"{amount(plan.model.num_parameters)} parameters"
    if isinstance(plan.model, ModelShape):
        if plan.model.expert_layers:
            text += f" ({amount(plan.model.num_active_parameters)} active)"
        text += f", {plan.model.num_hidden_layers} layers of width {plan.model.hidden_size:,}"
    return text


def value(term: Term) -> str:
    """The value of a term with its unit."""
    number, unit = term.value, term.unit
    if unit == "bytes":
        return show_bytes(number)
    if unit == "bytes/s":
        return f"{number / 1e9:,.4g} GB/s"
    if unit == "s":
        return duration(number) if number >= 60.0 else seconds(number)
    if unit == "share":
        return f"{number:.2%}"
    return f"{number:,.4g} {unit}" if number < 1e4 else f"{number:,.0f} {unit}"


def seconds(number: float) -> str:
    """Of a step or its parts: three digits, in ms below a second."""
    return f"{number:.3g} s" if number >= 1.0 else f"{1000.0 * number:.3g} ms"


def table(rows: Iterable[Sequence[str]], right: Sequence[int] = (), words: int | None = None) -> list[str]:
    """Rows as lines with columns of the same width. right: indices of columns that end at the same place.
    words: that of a column of words, which goes on in further lines where the terminal is too narrow."""
    rows = list(rows)
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))] if rows else []
    if words is not None and rows:
        rest = sum(widths) + 2 * (len(widths) - 1) - widths[words]
        widths[words] = min(widths[words], max(LEAST_COLUMN, width() - rest))
        rows = [line for row in rows for line in _lines(row, words, widths[words])]
    return [
        "  ".join(
            text.rjust(columns) if n in right else text.ljust(columns)
            for n, (text, columns) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]  # fmt: skip


def _lines(row: Sequence[str], words: int, columns: int) -> list[list[str]]:
    """A row as several, each with a line of its column of words."""
    parts = textwrap.wrap(row[words], columns, break_on_hyphens=False) or [""]
    first = [*row[:words], parts[0], *row[words + 1 :]]
    return [first, *([part if n == words else "" for n in range(len(row))] for part in parts[1:])]
