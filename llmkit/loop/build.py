"""From a launch to a trainer that is ready for its next step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from llmkit.config.entries import make_all
from llmkit.config.heldout import nothing_held_out
from llmkit.data.eval_loader import EvalLoader
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.device import choose_workers
from llmkit.engine.base import next_token
from llmkit.engine.build import build_engine, take_state
from llmkit.evaluation.harness import check_tasks
from llmkit.loop.begin import begin
from llmkit.loop.branch import begin_branch, origin_record
from llmkit.loop.bring_back import bring_back
from llmkit.loop.describe import opening_lines
from llmkit.loop.evaluations import take_over_record
from llmkit.loop.failed_starts import COUNTED
from llmkit.loop.hook_list import instances
from llmkit.loop.initial_weights import StartingWeights, open_initial
from llmkit.loop.launch import Launch
from llmkit.loop.options import Options
from llmkit.loop.prepare import prepare_run
from llmkit.loop.resume import ResumePoint, changed_settings, find_resume_point, resumed_state
from llmkit.loop.rollback import Rollbacks, rollbacks_on_record
from llmkit.loop.spending import EnergyMeter, Spending
from llmkit.loop.state import TrainState
from llmkit.loop.stop import StopRequest
from llmkit.loop.tasks import tasks_of
from llmkit.loop.trainer import Trainer
from llmkit.monitor.console import Console
from llmkit.monitor.cost import Prices
from llmkit.monitor.events import EventLog, failure_recorded
from llmkit.monitor.media import MediaSink
from llmkit.monitor.metrics import MetricsFile, MetricsSink
from llmkit.monitor.sink import Sink, SinkThread
from llmkit.monitor.trackers import tracker_sinks
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Plan
from llmkit.preference.loss import DpoLoss
from llmkit.run_folder import RunFolder
from llmkit.watchdog.watch import Watch


def build_trainer(
    launch: Launch, folder: RunFolder, console: Console, stop: StopRequest, stack: ExitStack,
    watch: Watch | None = None,
) -> Trainer:
    """Builds all parts, resumes from the newest good checkpoint, and says what it chose.

    What needs closing is given to `stack`. Raises UserError if the run in the folder is another one; then,
    and where a finished run has nothing to do, nothing in it changes but that the error is an event.
    """
    fetched = bring_back(launch, folder, console.note)
    metrics, events = _open_records(folder, launch.mesh, partial(console.note, important=True), stack)
    if fetched is not None:
        events.record("fetched", **fetched)
    with failure_recorded(events):
        return _build(launch, folder, console, stop, stack, watch or Watch(), metrics, events)


def _build(
    launch: Launch, folder: RunFolder, console: Console, stop: StopRequest, stack: ExitStack,
    watch: Watch, metrics: MetricsFile, events: EventLog,
) -> Trainer:  # fmt: skip
    config, mesh, note = launch.config, launch.mesh, console.note
    for line in launch.loaded.remarks:
        note(f"note: {line}")
    energy = EnergyMeter(mesh)  # from now on: a start may take long
    stack.callback(energy.close)
    bounded = COUNTED in launch.environment
    point = find_resume_point(launch.loaded, mesh, folder, launch.options, note, bounded=bounded)
    checkpoint = point.checkpoint
    initial = open_initial(config, mesh, checkpoint, note)
    data, plan = prepare_run(launch, folder, checkpoint, initial, note, console.table)
    state = TrainState(max_steps=config.train.max_steps)
    if checkpoint is not None:
        state = resumed_state(checkpoint, config, data.fingerprint, note)
        if point.begins_branch:
            with fail_together(mesh):
                begin_branch(state, launch.loaded)
    rollbacks = rollbacks_on_record(events, mesh)
    with fail_together(mesh):
        sinks = _sinks(launch, folder, metrics, console, stack)
        loader, data_changes = _open_loader(launch, plan, data, point, state, rollbacks, stack)
    adapts = config.train.lora.rank > 0  # then the run's own checkpoints have the adapters alone
    base = initial if adapts else None
    engine = build_engine(
        plan, mesh, device=mesh.device, note=note,
        source=checkpoint or (None if adapts else initial), base=base,
        optimizer_steps=0 if checkpoint is None else checkpoint.state["updates"],
        objective=DpoLoss(config.train.dpo) if config.train.objective == "dpo" else next_token,
    )  # fmt: skip
    stack.callback(engine.close)
    events.listeners += [sink.event for sink in sinks]
    trainer = Trainer(
        launch, plan, data, loader, _heldout(launch, plan, data, note), engine, state,
        folder=folder, console=console, events=events, sinks=sinks, watch=watch,
        stop=stop, saved_step=None if checkpoint is None or point.begins_branch else state.step,
        was_done=point.was_done, saved_state=_saved_state(point, initial, launch.options),
        spending=Spending(mesh, energy, Prices.of(config.monitor), launch.started, launch.clock),
        metrics=metrics, rollbacks=rollbacks,
        restore=lambda earlier: take_state(engine, config, earlier, base, earlier.state["updates"]),
    )  # fmt: skip
    stack.callback(trainer.close)
    stack.callback(trainer.saves.close)
    with fail_together(mesh):
        if mesh.rank == 0 and not trainer.has_nothing_to_do:
            if (tasks := tasks_of(config)) is not None:
                check_tasks(tasks, engine.model.context_length)  # now, not hours later
            begin(trainer, launch.loaded, point, metrics, data_changes)
    if checkpoint is not None:
        take_over_record(trainer)
    console.max_steps = state.max_steps
    for line in opening_lines(trainer, launch, point):
        note(line)
    return trainer


def _saved_state(point: ResumePoint, initial: StartingWeights | None, options: Options) -> Mapping[str, Any]:
    """What the checkpoint keeps beside the engine's state; of a new run, what its first one inherits.

    initial: the weights that a new run starts from, where these are not random.
    """
    if point.checkpoint is None:
        return {} if initial is None else {"init_from": initial.record()}
    if not point.begins_branch:
        return point.checkpoint.state
    return point.checkpoint.state | {"branched_from": origin_record(point.checkpoint, options)}


def _open_records(
    folder: RunFolder, mesh: Mesh, note: Callable[[str], None], stack: ExitStack
) -> tuple[MetricsFile, EventLog]:
    """The run's record, which rank 0 keeps; that of the others goes nowhere. `stack` closes it.

    Raises UserError, on all ranks, where it could never be written. note: is called with what is lost.
    """
    names = ("metrics.jsonl", "events.jsonl")
    places = [os.devnull if mesh.rank > 0 else folder.path / name for name in names]
    metrics, events = MetricsFile(places[0], folder.claim), EventLog(places[1], folder.claim)
    for file in (metrics, events):
        stack.callback(_close_record, file, note)
    with fail_together(mesh):
        events.open()
        with failure_recorded(events):
            metrics.open()
    return metrics, events


def _close_record(file: MetricsFile | EventLog, note: Callable[[str], None]) -> None:
    file.close()
    if file.fault is not None:
        note(f"the last rows could not be written and are lost: {file.fault}")


def _sinks(
    launch: Launch, folder: RunFolder, metrics: MetricsFile, console: Console, stack: ExitStack
) -> list[Sink]:
    """What receives the rows: nothing but on rank 0. Sinks of others are closed by `stack`."""
    if launch.mesh.rank > 0:
        return []
    others = [*instances(make_all(launch.config, "sink"), Sink), *launch.sinks]
    others += tracker_sinks(launch.config, folder.path)
    fed = [SinkThread(sink, console.note) for sink in others]
    for thread in fed:
        stack.callback(thread.close)
    lost = partial(console.note, important=True)
    media = MediaSink(folder.path, lost, folder.claim)
    stack.callback(media.close)
    return [MetricsSink(metrics, lost), media, console, *fed]


def _open_loader(
    launch: Launch,
    plan: Plan,
    data: PreparedData,
    point: ResumePoint,
    state: TrainState,
    rollbacks: Rollbacks,
    stack: ExitStack,
) -> tuple[TrainLoader, list[str]]:
    """What gives the batches from here on, closed by `stack`; how its data differ from the checkpoint's.

    Where a source does not last for the steps that a time budget has become, `state` ends with it.
    """
    config, mesh, checkpoint = launch.config, launch.mesh, point.checkpoint
    loader = TrainLoader(
        data, config.data, config.run.seed, config.train.global_batch_size, plan.micro_batch_size,
        rank=mesh["data"].rank, world_size=mesh["data"].size,
        hash_rows=mesh["context", "tensor"].size > 1 or config.monitor.log_samples,
        workers=choose_workers(config, launch.local_size),
    )  # fmt: skip
    stack.callback(loader.close)
    changes: list[str] = []
    if point.begins_branch and launch.options.begins_data_anew:
        loader.begin_anew(state.step)
    elif checkpoint is not None:
        allowed = launch.options.allow_data_change
        settings = changed_settings(checkpoint, launch.loaded).of("data")
        others = [str(difference) for difference in settings]
        changes = loader.load_state_dict(checkpoint.state["data"], state.step, allowed, others)
        if changes:
            rollbacks.windows.clear()  # in other data other rows stand there
        rollbacks.apply(loader)
    if config.train.max_steps is not None:
        loader.check_epochs(config.train.max_steps)
    elif state.max_steps is not None and (short := loader.first_shortage) is not None:
        state.end_after(min(state.max_steps, short.last_step))
    if not state.finished():
        loader.start()
    return loader, changes


def _heldout(
    launch: Launch, plan: Plan, data: PreparedData, note: Callable[[str], None]
) -> EvalLoader | None:
    """None where nothing is held out, or nothing of it is a target; noted where that was not asked for."""
    config, mesh = launch.config, launch.mesh
    if data.heldout_targets:
        return EvalLoader(data, plan.micro_batch_size, mesh["data"].rank, mesh["data"].size)
    if config.evaluate.every_steps or config.data.heldout_every:
        note(f"nothing will be evaluated: {nothing_held_out(launch.loaded.settings)}")
    return None
