"""What a run is, in a few lines, and the figures that it has come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from llmkit.config.mistakes import printable
from llmkit.monitor.record import RunRecord, at
from llmkit.monitor.run_state import time_of
from llmkit.monitor.text import duration
from llmkit.report.axes import elapsed
from llmkit.report.chart import short
from llmkit.report.happened import starts
from llmkit.report.time_use import TRAINING, taken, time_use


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """What runs are called: the names of their folders, with as many of those above as tell them apart."""
    parts = [run.folder.absolute().parts for run in runs]
    different = len(set(parts))
    for depth in range(1, 1 + max(map(len, parts))):
        names = [printable("/".join(part[-depth:])) for part in parts]
        if len(set(names)) == different:
            break
    return names


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Names and texts of what the run is; what is not known is left out."""
    return [(name, text) for name, text in _facts(run) if text]


def _facts(run: RunRecord) -> Iterator[tuple[str, str]]:
    yield "Model", _model(run)
    yield "Data", _data(run)
    yield "Trained on", _device(run)
    yield "Layout", _layout(run)
    begun = [time - taken(event) for event in starts(run.events) if (time := time_of(event)) is not None]
    if begun:
        more = f", {len(begun) - 1} restart{'s' * (len(begun) > 2)}" if len(begun) > 1 else ""
        yield "Began", f"{_utc(begun[0])}{more}"
    if run.state.since is not None:
        yield ("Last written" if run.state.name in ("running", "stalled") else "Ended"), _utc(run.state.since)
    known = elapsed(run)
    seconds = max(sum(use.seconds for use in time_use(run)), (known.last or 0.0) if known else 0.0)
    if seconds:
        yield "Wall time", duration(seconds)
    yield "Forecast", _forecast(run)
    verdicts = [event["verdict"] for event in run.events if isinstance(event.get("verdict"), str)]
    if verdicts:
        yield "Profile", printable(verdicts[-1], 300)
    if run.damaged_lines:
        yield "Damaged", f"lines of metrics.jsonl that are no rows, left out: {run.damaged_lines:,}"


def progress(run: RunRecord) -> str:
    """How far the run has come."""
    step = run.newest.get("step", 0)
    last = run.manifest.get("max_steps") or at(run.checkpoint, "state", "progress", "max_steps")
    if isinstance(last, int) and last >= step and last > 0:
        return f"step {step:,} of {last:,} ({100 * step / last:.0f} %)"
    return f"step {step:,}" if step else "no step yet"


def figures(run: RunRecord) -> dict[str, str]:
    """The newest figures of a run, each with its unit; what was never recorded is left out."""
    columns = run.columns
    found: dict[str, str] = {}

    def add(label: str, column: str, form: str = "{:.4f}", factor: float = 1.0) -> None:
        value = columns[column].last if column in columns else None
        if value is not None:
            found[label] = form.format(value * factor)

    found["Steps"] = f"{run.newest.get('step', 0):,}"
    pairs = run.settings.get("train.objective") == "dpo"
    if "tokens" in columns and (tokens := columns["tokens"].last) is not None:
        found["Pairs" if pairs else "Tokens"] = short(tokens)
    add("Training loss", "loss_mean" if "loss_mean" in columns else "loss")
    add("Held-out loss", "eval_loss")
    if (evaluated := columns.get("eval_loss")) is not None and np.isfinite(evaluated.values).sum() > 1:
        best = int(np.nanargmin(evaluated.values))
        if best < evaluated.values.size - 1:
            found["Best held-out loss"] = f"{evaluated.values[best]:.4f} at step {evaluated.steps[best]:,}"
    add("Perplexity", "eval_perplexity", "{:.2f}")
    add("Bits per byte", "eval_bits_per_byte")
    add("Held-out accuracy", "eval_rewards/accuracy", "{:.1f} %", 100.0)
    if (speed := _median(columns.get("tokens_per_second"))) is not None:
        found["Tokens/s, median"] = short(speed)
    if (used := _median(columns.get("mfu"))) is not None:
        found["MFU, median"] = f"{100 * used:.1f} %"
    if (useful := next((use for use in time_use(run) if use.name == TRAINING), None)) is not None:
        found["Goodput"] = f"{useful.share:.1f} %"
    if (memory := columns.get("peak_memory_gib")) is not None and memory.last is not None:
        found["Peak memory"] = f"{np.nanmax(memory.values):.2f} GiB"  # each start counts anew
    add("Skipped updates", "skipped_total", "{:,.0f}")
    add("Energy", "energy_kwh", "{:.4g} kWh")
    add("CO2", "co2_grams", "{:.4g} g")
    add("Cost", "cost", f"{{:.2f}} {run.settings.get('monitor.cost.currency', '')}")
    return found


def _median(column: Any) -> float | None:
    """The median of what is known of a column: one slow row is not the speed of a run."""
    known = column.values[np.isfinite(column.values)] if column is not None else np.zeros(0)
    return float(np.median(known)) if known.size else None


def _model(run: RunRecord) -> str:
    shape: dict[str, Any] = _mapping(run.manifest.get("model")) or _mapping(run.checkpoint.get("model"))
    parts = []
    rank, updated = run.settings.get("train.lora.rank"), _updated_parameters(run)
    if updated is not None and not rank:
        parts.append(f"{short(updated)} parameters")
    for key, what in (
        ("num_hidden_layers", "{:,} layers"), ("hidden_size", "width {:,}"),
        ("num_attention_heads", "{:,} heads"), ("vocab_size", "vocabulary {:,}"),
    ):  # fmt: skip
        value = shape.get(key, run.settings.get(f"model.{key}"))
        if isinstance(value, int):
            parts.append(what.format(value))
    begun = _mapping(run.manifest.get("init_from")).get("path")
    if isinstance(begun, str):
        parts.append(f"began with the weights of {printable(begun, 200)}")
    branch = _mapping(run.manifest.get("branched_from"))
    if isinstance(path := branch.get("path"), str):
        parts.append(f"a branch, which began with {printable(path, 200)}")
    if isinstance(rank, int) and rank:
        of = "" if updated is None else f"{short(updated)} parameters of "
        parts.append(f"{of}adapters of rank {rank} are trained")
    return ", ".join(parts)


def _updated_parameters(run: RunRecord) -> int | None:
    """Elements of what the optimizer updates: of all parameters, or of those of adapters."""
    groups = run.manifest.get("parameter_groups")
    if not isinstance(groups, list):
        return None
    counts = [_mapping(group).get("elements") for group in groups]
    return sum(count for count in counts if isinstance(count, int)) or None


def _data(run: RunRecord) -> str:
    names = source_names(run)
    length = run.settings.get("data.sequence_length")
    rows = run.settings.get("train.global_batch_size")
    parts = (
        [", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")] if names else []
    )
    if isinstance(length, int):
        pairs = run.settings.get("train.objective") == "dpo"
        parts.append(f"pairs of 2 x {length:,} tokens" if pairs else f"rows of {length:,} tokens")
    if isinstance(rows, int):
        parts.append(f"{rows:,} a step")
    return "; ".join(parts)


def source_names(run: RunRecord) -> list[str]:
    """The names of the data sources, as the newest checkpoint has them, else as the settings do."""
    known = at(run.checkpoint, "state", "data", "fingerprint", "sources")
    if isinstance(known, list) and known and all(isinstance(each, dict) for each in known):
        return [printable(str(each.get("name", "")), 80) for each in known]
    found, number = [], 0
    while (kind := run.settings.get(f"data.sources.{number}.type")) is not None:
        name = run.settings.get(f"data.sources.{number}.name") or f"{kind}-{number}"
        found.append(printable(str(name), 80))
        number += 1
    return found


def _device(run: RunRecord) -> str:
    device, host = run.manifest.get("device"), run.manifest.get("host")
    world = _mapping(run.manifest.get("layout")).get("world_size", 1)
    many = f"{world} processes, each on " if isinstance(world, int) and world > 1 else ""
    where = f", host {host}" if host else ""
    return printable(f"{many}{device}{where}", 300) if device else ""


def _forecast(run: RunRecord) -> str:
    """What a step was predicted to take, and took, in the newest start that has compared them."""
    found = [event for event in run.events if event.get("event") == "predicted"]
    newest = found[-1] if found else {}
    predicted, measured = newest.get("predicted"), newest.get("measured")
    if not isinstance(predicted, (int, float)) or not isinstance(measured, (int, float)):
        return ""
    text = f"{predicted:.3g} s a step were predicted, {measured:.3g} s measured"
    if predicted > 0:
        text += f" ({100 * (measured / predicted - 1):+.0f} %)"
    cause = newest.get("cause")
    return text + (f"; most likely because of {printable(cause, 300)}" if isinstance(cause, str) else "")


def _layout(run: RunRecord) -> str:
    layout = _mapping(run.manifest.get("layout"))
    parts = [str(run.manifest.get("precision", ""))]
    if stage := layout.get("zero_stage"):
        parts.append(f"ZeRO-{stage}")
    if isinstance(size := layout.get("tensor_parallel_size"), int) and size > 1:
        parts.append(f"tensor parallel x {size}")
    if isinstance(size := layout.get("context_parallel_size"), int) and size > 1:
        parts.append(f"context parallel x {size}")
    if isinstance(size := layout.get("expert_parallel_size"), int) and size > 1:
        parts.append(f"experts over {size}")
    micro, steps = run.manifest.get("micro_batch_size"), run.manifest.get("accumulation_steps")
    if isinstance(micro, int) and isinstance(steps, int):
        parts.append(f"micro-batches of {micro} x {steps}")
    if (kernels := _mapping(run.manifest.get("kernels"))).get("compiled") is not None:
        parts.append("compiled" if kernels["compiled"] else "not compiled")
    return ", ".join(filter(None, parts))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _utc(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"
