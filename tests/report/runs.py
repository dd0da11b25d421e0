"""Run folders as a run leaves them, for tests of its page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmkit.config.load import load
from llmkit.config.show import to_yaml
from llmkit.monitor.record import RunRecord, read_run
from tests.program import make_project

START = {
    "time": "2026-11-29T01:00:00.000+00:00",
    "event": "start",
    "step": 0,
    "config": "configs/start-0001.yaml",
}
RESUME = {
    "time": "2026-11-29T01:10:00.000+00:00", "event": "resume", "step": 20,
    "config": "configs/start-0001.yaml",
    "changes": [{"setting": "train.max_steps", "old": "20", "new": "40", "origin": "command line"}],
}  # fmt: skip
EVENTS = (
    START,
    {"time": "2026-11-29T01:02:00.000+00:00", "event": "save", "step": 20, "path": "step-00000020"},
    {"time": "2026-11-29T01:03:00.000+00:00", "event": "fault", "step": 30, "reason": "OSError: disk"},
    RESUME,
    {"time": "2026-11-29T01:14:00.000+00:00", "event": "save", "step": 40, "path": "step-00000040"},
    {"time": "2026-11-29T01:14:05.000+00:00", "event": "done", "step": 40, "tokens": 4000},
)
MANIFEST = {
    "llmkit": "0.1.0 (source 0123)", "python": "3.11.7", "host": "vm", "device": "an H100",
    "precision": "bf16", "max_steps": 40,
    "command": ["/usr/bin/llmkit", "train", "a b.yaml", "train.max_steps=40"],
    "micro_batch_size": 4, "accumulation_steps": 2, "flops_per_token": 1000.0, "tokens_per_step": 100,
    "layout": {"world_size": 4, "zero_stage": 2, "tensor_parallel_size": 2}, "kernels": {"compiled": True},
    "model": {"num_hidden_layers": 2, "hidden_size": 32},
    "parameter_groups": [{"elements": 1500}, {"elements": 500}],
}  # fmt: skip


def row(step: int, **others: Any) -> dict[str, Any]:
    """A row of a step."""
    return {
        "step": step, "tokens": 100 * step, "loss": 5.0 - step / 20, "loss_mean": 5.1 - step / 20,
        "grad_norm": 1.0, "learning_rate": 0.01, "step_seconds": 2.0, "tokens_per_second": 50.0,
        "data_seconds": 0.1, "mfu": 0.4, "mfu_peak": "of an H100", "peak_memory_gib": 3.0,
    } | others  # fmt: skip


def write_lines(path: Path, rows: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows))


def make_run(
    folder: Path, rows: Iterable[object] | None = None, events: Iterable[object] = EVENTS,
    media: Iterable[object] = (), manifest: dict[str, Any] | None = None, overrides: Iterable[str] = (),
) -> RunRecord:  # fmt: skip
    """A run of 40 steps with a fault in it, unless something else is given."""
    if rows is None:
        rows = [row(step) for step in range(1, 41)] + [
            {"step": 40, "eval_loss": 3.25, "eval_bits_per_byte": 1.5}
        ]
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "events.jsonl", events)
    write_lines(folder / "media.jsonl", media)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST if manifest is None else manifest))
    loaded = load(make_project(folder.with_name(f"{folder.name}-project"), documents=1), list(overrides))
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs/start-0001.yaml").write_text(to_yaml(loaded.config, loaded.origins))
    (folder / "config.yaml").write_text(to_yaml(loaded.config))
    return read_run(folder)


def write_checkpoint(folder: Path, **data: Any) -> None:
    """What a checkpoint of the run says of its data."""
    path = folder / "checkpoints/step-00000040/manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"state": {"data": {"fingerprint": data}, "started_in": "/home/me/project"}}))
