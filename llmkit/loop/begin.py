"""What a start leaves in the run folder before its first step: its settings, an event, a clean record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmkit import __version__
from llmkit.checkpoint.read import Checkpoint
from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.config.show import to_yaml
from llmkit.data.located import located
from llmkit.loop.best import forget_later_best
from llmkit.loop.describe import manifest
from llmkit.loop.learning_rate import rate_change
from llmkit.loop.resume import ResumePoint, changed_settings, settings_of
from llmkit.loop.samples import cut_back_samples
from llmkit.monitor.cost import spent_until_now
from llmkit.monitor.jsonlines import Row
from llmkit.monitor.media import cut_back_media
from llmkit.monitor.metrics import MetricsFile
from llmkit.plan import Plan

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


def begin(
    t: Trainer, loaded: Loaded, point: ResumePoint, metrics: MetricsFile, data_changes: list[str]
) -> None:
    """Makes the record of the run that of this start, on rank 0, and notes what is not as it was.

    The rows after the checkpoint's step are dropped: these steps are done again. The settings are kept
    beside those of earlier starts; the event "start" or "resume" names the file, and every change.
    data_changes: how the data differ from the checkpoint's.
    """
    checkpoint, state, folder, note = point.checkpoint, t.state, t.folder, t.console.note
    if data_changes:
        t.events.record("data_change", step=state.step, differences=data_changes)
        note(f"going on with other data: {'; '.join(data_changes)}")
    folder.require_current()
    rows, events = metrics.rows(), t.events.rows()
    lost = None if point.begins_branch else lost_rows(rows, events, checkpoint)
    t.ledger.go_on(rows, events, state.step)
    t.spending.before = spent_until_now(rows, events)
    last = max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=0)
    metrics.cut_back(state.step)
    cut_back_samples(folder.path, state.step)
    cut_back_media(folder.path, state.step)
    folder.write_text("config.yaml", to_yaml(_located(loaded.config)))
    fields: dict[str, Any] = {"step": state.step}
    fields["config"] = folder.keep_config(to_yaml(loaded.config, loaded.origins))
    if checkpoint is None and t.init_from is not None:
        fields["init_from"] = dict(t.init_from)
    if point.begins_branch:
        fields["branched_from"] = t.branched_from
    if checkpoint is not None:
        fields["changes"] = [change.to_json() for change in changed_settings(checkpoint, loaded).all]
        for name, old, new in _changed_surroundings(checkpoint, t.plan):
            fields["changes"].append({"setting": name, "old": old, "new": new, "origin": ""})
            note(f"changed since the checkpoint: {name} {old} -> {new}")
        if (change := rate_change(checkpoint, loaded.config, state)) is not None:
            fields["learning_rate"] = {"step": state.step + 1, "old": change.old, "new": change.new}
            note(change.message)
    if lost is not None:
        fields["lost_rows"] = {"after": lost[0], "up_to": lost[1]}
        note(f"metrics.jsonl has lost its rows after step {lost[0]} up to step {lost[1]}")
    if last > state.step:
        fields["again_up_to"] = last
        note(f"steps {state.step + 1} to {last} are in no checkpoint that is used: they are done again")
    if point.passed_over:
        fields["passed_over"] = point.passed_over
    forget_later_best(t)
    folder.clear_done()
    fields["generation"] = folder.generation
    if folder.taken_from:
        t.events.record("take_over", step=state.step, before=folder.taken_from, forced=folder.took_by_force)
    is_new = checkpoint is None or point.begins_branch
    t.record_event("start" if is_new else "resume", **fields)
    folder.write_json("manifest.json", manifest(t, loaded))
    folder.remove("deepspeed.json")  # of an earlier layout
    for name, content in t.engine.files().items():
        folder.write_json(name, content)


def _changed_surroundings(checkpoint: Checkpoint, plan: Plan) -> Iterator[tuple[str, str, str]]:
    """What is no setting, or was decided by the device: its name, what it was and what it is."""
    if (before := checkpoint.state["precision"]) != plan.precision.name:
        yield "precision in use", before, plan.precision.name
    kernels = checkpoint.state.get("kernels", {})  # checkpoints until 2026-11-28 do not tell
    for name, new in plan.kernels.in_use.items():
        if (old := kernels.get(name, new)) != new:
            yield f"{name} in use", old, new
    now = {"llmkit": __version__, "torch": str(torch.__version__)}
    for name, old in checkpoint.manifest.versions.items():
        if name in now and now[name] != old:
            yield f"version of {name}", old, now[name]


def _located(config: Config) -> Config:
    """The settings with paths that do not depend on the working directory."""
    run = config.run.model_copy(update={"dir": os.path.abspath(config.run.dir)})
    return config.model_copy(update={"run": run, "data": located(config.data, Path.cwd())})


def lost_rows(rows: list[Row], events: list[Row], checkpoint: Checkpoint | None) -> tuple[int, int] | None:
    """The last step that has a row, and the last one up to the checkpoint's that should have; None if it has.

    A row was due at every step that `monitor.log_every` of the checkpoint divides, since the start of which
    the checkpoint is.
    """
    if checkpoint is None:
        return None
    begun = [row.get("step") for row in events if row.get("event") in ("start", "resume")]
    since = max((step for step in begun if isinstance(step, int) and step < checkpoint.step), default=0)
    since = max(since, checkpoint.state.get("branched_from", {}).get("step", 0))
    every = settings_of(checkpoint).monitor.log_every
    due = max(checkpoint.step - checkpoint.step % every, 1)
    steps = [row["step"] for row in rows if "loss" in row and isinstance(row.get("step"), int)]
    last = max((step for step in steps if step <= checkpoint.step), default=0)
    return (last, due) if since < due and last < due else None
