"""From a configuration to a run that is ready for its next step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from llmkit.checkpoint.read import Checkpoint
from llmkit.config.heldout import nothing_held_out
from llmkit.config.load import Loaded
from llmkit.config.settings import Settings
from llmkit.data.evaluation import HeldOut
from llmkit.data.loader import TrainLoader
from llmkit.device import choose_workers
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.loop.basis import Basis, Start, lay_basis
from llmkit.loop.begin import begin
from llmkit.loop.control import Control
from llmkit.loop.describe import manifest, opening_lines
from llmkit.loop.evaluate import take_over_evaluation
from llmkit.loop.progress import Progress
from llmkit.loop.resume import changed_settings, resumed_progress, shared_checkpoint
from llmkit.loop.run import Run
from llmkit.monitor.console import Console, SilentConsole
from llmkit.monitor.events import EventLog, failure_recorded
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.wandb_mirror import Mirror
from llmkit.parallel.accelerate import read_accelerate
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Known, Plan, resolve_plan
from llmkit.run_folder import RunFolder


def resolve_launch(loaded: Loaded, environment: Mapping[str, str], world_size: int) -> tuple[Known, Plan]:
    """What the launch of `world_size` processes makes known, and the plan as far as that goes.

    Raises UserError where the settings do not go together, with each other or with the launch.
    """
    known = Known(world_size, read_accelerate(environment))
    return known, resolve_plan(loaded, known)


def set_up(start: Start, folder: RunFolder, console: Console, stack: ExitStack) -> Run:
    """Builds all parts, resumes from the newest good checkpoint, and says what it chose.

    What needs closing is given to `stack`. Raises UserError if the run in the folder is another one; then,
    and where a finished run has nothing to do, nothing in it changes but that the error is an event.
    """
    metrics, events = _open_records(folder, start.mesh, console.note, stack)
    with failure_recorded(events):
        return _assemble(start, folder, metrics, events, console, stack)


def _assemble(
    start: Start,
    folder: RunFolder,
    metrics: MetricsFile,
    events: EventLog,
    console: Console,
    stack: ExitStack,
) -> Run:
    config, mesh = start.config, start.mesh
    for line in start.loaded.remarks:
        console.note(f"note: {line}")
    standing = shared_checkpoint(start.loaded, mesh, folder, start.options, console.note)
    checkpoint = standing.checkpoint
    basis = lay_basis(start, folder, checkpoint, console.note)
    progress = Progress(max_steps=config.train.max_steps)
    if checkpoint is not None:
        progress = resumed_progress(checkpoint, config, basis.data.fingerprint, console.note)
    with fail_together(mesh):
        loader, changes = _loader(start, basis, checkpoint, progress, stack)
    engine = build_engine(
        basis.plan, mesh, device=basis.device, note=console.note,
        source=checkpoint, optimizer_steps=0 if checkpoint is None else checkpoint.state["updates"],
    )  # fmt: skip
    stack.callback(engine.close)
    with fail_together(mesh):
        if mesh.rank == 0 and not (progress.finished() and standing.was_done):
            if changes:
                events.record("data_change", step=progress.step, differences=changes)
                console.note(f"going on with other data: {'; '.join(changes)}")
            begin(
                start.loaded,
                progress,
                standing,
                basis.plan.precision.name,
                folder,
                metrics,
                events,
                console.note,
            )
            _write_down(start, basis, engine, folder)
    if checkpoint is not None:
        take_over_evaluation(progress, config, metrics, mesh)
    console.max_steps = progress.max_steps
    for line in opening_lines(start, basis, checkpoint, progress, folder):
        console.note(line)
    return Run(
        config=config,
        folder=folder,
        shape=basis.plan.model,
        device=basis.device,
        precision=basis.plan.precision.name,
        data=basis.data,
        heldout=_heldout(start, basis, console.note),
        loader=loader,
        engine=engine,
        progress=progress,
        console=console,
        metrics=metrics,
        events=events,
        mesh=mesh,
        layout=start.plan.layout,
        control=Control(mesh),
        was_done=standing.was_done,
        saved_step=None if checkpoint is None else progress.step,
    )


def _loader(
    start: Start, basis: Basis, checkpoint: Checkpoint | None, progress: Progress, stack: ExitStack
) -> tuple[TrainLoader, list[str]]:
    """What gives the batches from here on, closed by `stack`; how its data differ from the checkpoint's."""
    config, mesh = start.config, start.mesh
    loader = TrainLoader(
        basis.data, config.data, config.run.seed, config.train.global_batch_size, basis.plan.micro_batch_size,
        rank=mesh["data"].rank, world_size=mesh["data"].size,
        hash_rows=mesh["context", "tensor"].size > 1 or config.monitor.log_samples,
        workers=choose_workers(config, start.local_size),
    )  # fmt: skip
    stack.callback(loader.close)
    changes: list[str] = []
    if checkpoint is not None:
        allowed = start.options.allow_data_change
        settings = changed_settings(checkpoint, start.loaded).of("data")
        changes = loader.load_state(
            checkpoint.state["data"], progress.step, allowed, [str(d) for d in settings]
        )
    if config.train.max_steps is not None:
        loader.check_supply(config.train.max_steps)
    elif progress.max_steps is not None and (short := loader.first_shortage) is not None:
        progress.max_steps = max(progress.step, min(progress.max_steps, short.last_step))
    if not progress.finished():
        loader.start()
    return loader, changes


def _open_records(
    folder: RunFolder, mesh: Mesh, note: Callable[[str], None], stack: ExitStack
) -> tuple[MetricsFile, EventLog]:
    """The run's record, which rank 0 keeps; that of the others goes nowhere. `stack` closes it.

    Raises UserError, on all ranks, where it could never be written. note: is told what was not written.
    """
    names = ("metrics.jsonl", "events.jsonl")
    places = [os.devnull if mesh.rank > 0 else folder.path / name for name in names]
    metrics, events = MetricsFile(places[0]), EventLog(places[1])
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


def _write_down(start: Start, basis: Basis, engine: Engine, folder: RunFolder) -> None:
    """What the run is computed with, into its folder."""
    folder.write_json("manifest.json", manifest(start, basis))
    folder.remove("deepspeed.json")  # of an earlier layout
    for name, content in engine.files().items():
        folder.write_json(name, content)


def _heldout(start: Start, basis: Basis, note: Callable[[str], None]) -> HeldOut | None:
    """None where nothing is held out, or nothing of it is a target; where that was not asked for, told."""
    config, mesh = start.config, start.mesh
    if basis.data.heldout_targets:
        return HeldOut(basis.data, basis.plan.micro_batch_size, mesh["data"].rank, mesh["data"].size)
    if config.evaluate.every_steps or config.data.heldout_every:
        note(f"nothing will be evaluated: {nothing_held_out(Settings(config, start.loaded.origins))}")
    return None


def open_console(mesh: Mesh) -> Console:
    """What shows the run: on rank 0. What the others have to say is in their logs alone."""
    return Console() if mesh.rank == 0 else SilentConsole()


def open_mirror(run: Run, loaded: Loaded, environment: Mapping[str, str]) -> Mirror:
    """The mirror to Weights & Biases, which follows rank 0's record."""
    if run.mesh.rank > 0:
        return Mirror(run.folder.path, "")
    settings, public = run.config.monitor.wandb, run.config.model_dump(mode="json")
    mirror = Mirror.start(run.folder.path, settings, public, environment=environment, origins=loaded.origins)
    if mirror.message:
        run.console.note(mirror.message)
    return mirror
