"""What a start shows: the plan of the run that lies ahead, and the live view."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from llmkit.config.memory import show_bytes
from llmkit.config.mistakes import listed
from llmkit.config.monitor_section import Monitor
from llmkit.data.prepared import PreparedData, shown_size
from llmkit.loop.describe import device_name
from llmkit.monitor.goodput import IN_WORDS
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.progress import Progress
from llmkit.monitor.text import duration, thousands
from llmkit.plan.overview import Line, every_steps, minutes, schedule

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

SHOWN_SOURCES = 6
"""Of so many sources at most a line each."""
UNKNOWN_STEPS = 10_000
"""Over which shares are counted where the number of steps is not known."""
ACTIVITIES = ("start", "data", "compile", "evaluate", "save")
"""Phases that the live view names."""
SHORT_WAIT = 2.0
"""Seconds of waiting for data that are not worth a word."""


def start_plan(t: Trainer, peak: str, step_seconds: float | None) -> Iterator[Line]:
    """A line about each thing; on rank 0.

    peak: what utilization is measured against. step_seconds: of a step before a resume; None = not known.
    """
    begun = f"goes on after step {t.state.step:,}" if t.state.step else "new"
    yield "run", f"{t.folder.path}, {begun}"
    yield "device", f"{_device(t.mesh.device)}, {t.plan.precision}"
    yield "peak", peak
    yield "forecast", t.forecast.text
    yield from zip(("data", *[""] * SHOWN_SOURCES), _data(t), strict=False)
    yield "length", _length(t, step_seconds)
    for name, text in schedule(t.config):
        if name == "evaluates":
            text = f"{text}, on {_held_out(t.data)}" if t.heldout else "nothing is held out"
        yield name, text
    yield from t.spending.describe()
    yield "metrics", _metrics(t.config.monitor)


def _device(device: torch.device) -> str:
    """The device, and the memory of a GPU."""
    if device.type != "cuda":
        return device_name(device)
    return f"{device_name(device)} with {show_bytes(torch.cuda.get_device_properties(device).total_memory)}"


def _data(t: Trainer) -> Iterator[str]:
    """Of each source its share of the rows to come, what it has, and how often that will be read."""
    steps = None if t.state.max_steps is None else t.state.max_steps - t.state.step
    rows = t.loader.rows_to_come(UNKNOWN_STEPS if steps is None else steps)
    total = max(1, sum(rows))
    shown = sorted(zip(rows, t.data.sources, strict=True), key=lambda each: -each[0])
    for count, source in shown[:SHOWN_SOURCES]:
        text = f"{source.name}: " + (f"{100 * count / total:.3g} % of the rows, " if len(rows) > 1 else "")
        if source.stored is None:
            yield f"{text}tokenized while training"
            continue
        text += f"{source.stored.tokens:,} tokens"
        if steps is not None:
            text += f", {count * t.data.sequence_length / source.stored.tokens:.3g} epochs to come"
        yield text
    if len(shown) > SHOWN_SOURCES:
        yield f"and {len(shown) - SHOWN_SOURCES} more sources"


def _length(t: Trainer, step_seconds: float | None) -> str:
    """Steps and tokens, those that are left, and the time."""
    state, each = t.state, t.plan.tokens_per_step
    if state.max_steps is None:
        assert t.config.train.max_minutes is not None
        return f"{minutes(t.config.train.max_minutes)}; the first steps are timed to see how many fit"
    text = f"{state.max_steps:,} steps, {thousands(state.max_steps * each)} tokens"
    if not t.data.has_pairs:
        text += f" ({state.max_steps * each / t.plan.num_trained:.3g} for each trained parameter)"
    if state.step:
        left = max(0, state.max_steps - state.step)
        text += f"; {left:,} steps are left"
        if step_seconds is not None:
            text += f", about {duration(left * step_seconds)}"
    return text


def _metrics(monitor: Monitor) -> str:
    """When there are rows, and where they go, beside Weights & Biases, whose mirror speaks for itself."""
    where = ["metrics.jsonl", *monitor.trackers, *(sink.type for sink in monitor.sinks)]
    return f"{every_steps(monitor.log_every)}, to {listed(where)}"


def _held_out(data: PreparedData) -> str:
    if data.has_pairs:
        return f"{data.heldout_targets:,} pairs"
    return f"{shown_size(data.heldout_bytes)} of text"


def show_start(t: Trainer, peak: str) -> None:
    """Prints the plan of the run and begins the live view, with the rows and events so far; on rank 0."""
    config = t.config
    progress = Progress(
        t.folder.path.name, t.state.max_steps, config.checkpoint.every_steps,
        config.evaluate.every_steps if t.heldout else 0, config.monitor.cost.currency,
        config.checkpoint.every_minutes,
    )  # fmt: skip
    for event in t.events.rows():
        progress.take_event(event)
    progress.max_steps = t.state.max_steps
    for row in MetricsFile(t.folder.path / "metrics.jsonl").rows():
        progress.take(row)
    progress.step = t.state.step
    t.console.table(start_plan(t, peak, progress.step_seconds))
    t.console.follow(progress, lambda: _activity(t))


def _activity(t: Trainer) -> str | None:
    """What goes on beside steps; asked by another thread."""
    span = t.phases.current
    if span is None or span.name not in ACTIVITIES:
        return None
    seconds = t.clock() - span.began
    if span.name == "data" and seconds < SHORT_WAIT:
        return None
    return IN_WORDS[span.name] + (f", {duration(seconds)}" if seconds >= 1.0 else "")
