"""From a configuration to a run that is ready for its next step."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from llmkit.checkpoint.read import Checkpoint
from llmkit.config.derive import accumulation_steps, derive, resolved_model, size_of
from llmkit.config.heldout import nothing_held_out
from llmkit.config.load import Loaded, check_start
from llmkit.config.remarks import length_remarks, vocabulary_remarks
from llmkit.config.schema import Config, Data
from llmkit.config.settings import Known, Settings
from llmkit.config.shape import ModelShape
from llmkit.config.show import show_derived
from llmkit.data.building.opened import Found
from llmkit.data.building.prepare import prepare
from llmkit.data.building.probe import find_elsewhere
from llmkit.data.evaluation import HeldOut
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import Prepared, lane_lines
from llmkit.data.sources.listing import File
from llmkit.data.sources.units import Unit
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.errors import UserError
from llmkit.kernels.attention import choose_backend
from llmkit.kernels.compiler import compiler_missing
from llmkit.loop.begin import begin
from llmkit.loop.control import Control
from llmkit.loop.device import (
    choose_device,
    choose_micro_batch,
    choose_precision,
    choose_workers,
    make_deterministic,
)
from llmkit.loop.evaluate import take_over_evaluation
from llmkit.loop.progress import Progress
from llmkit.loop.resume import (
    Options,
    changed_settings,
    check_same_model,
    resumed_progress,
    settings_of,
    shared_checkpoint,
)
from llmkit.loop.room import require_disk, require_memory
from llmkit.loop.run import Run
from llmkit.loop.run_tokenizer import tokenizer_of_run
from llmkit.monitor.console import Console, SilentConsole
from llmkit.monitor.events import EventLog, failure_recorded
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.wandb_mirror import Mirror
from llmkit.monitor.wandb_names import check_environment
from llmkit.parallel.agreement import agree, first_only, software, together
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.resolve import resolve_layout, resolve_precision
from llmkit.run_folder import RunFolder


@dataclass(frozen=True)
class Start:
    """What is settled before the run folder is touched."""

    loaded: Loaded
    layout: Layout
    precision: str
    """As asked for; "auto" where the device decides."""
    mesh: Mesh
    options: Options
    local_size: int
    """Processes of this run on this host."""
    notes: tuple[str, ...] = ()
    """What of the launcher's configuration has no effect."""

    @property
    def config(self) -> Config:
        return self.loaded.config

    def known(self, tokenizer_size: int | None = None, holds_out: bool | None = None) -> Known:
        """What the launch, and later the data, add to the settings."""
        layout = self.layout
        return Known(layout.world_size, layout.zero_stage, layout.offload, tokenizer_size, holds_out)


@dataclass(frozen=True)
class Basis:
    """What an engine is built on."""

    device: torch.device
    precision: str
    data: Prepared
    shape: ModelShape
    micro_batch_size: int
    accumulation_steps: int


def resolve_launch(loaded: Loaded, environment: Mapping[str, str], world_size: int) -> tuple[Layout, str]:
    """The layout of `world_size` processes, and the precision that is asked for.

    Raises UserError where the settings do not go together, with each other or with the launch.
    """
    config, origins = loaded.config, loaded.origins
    layout = resolve_layout(config, origins, environment, world_size)
    check_start(loaded, Known(world_size, layout.zero_stage, layout.offload))
    precision = resolve_precision(config, origins, environment)
    check_environment(config.monitor.wandb, origins, environment)
    return layout, precision


def set_up(start: Start, folder: RunFolder, console: Console, stack: ExitStack) -> Run:
    """Builds all parts, resumes from the newest good checkpoint, and says what it chose.

    What needs closing is given to `stack`. Raises UserError if the run in the folder is another one; then,
    and where a finished run has nothing to do, nothing in it changes but that the error is an event.
    """
    metrics, events = _open_records(folder, start.mesh, stack)
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
    basis = _lay_basis(start, folder, checkpoint, console.note)
    progress = Progress(max_steps=config.train.max_steps)
    if checkpoint is not None:
        progress = resumed_progress(checkpoint, config, basis.data.fingerprint, console.note)
    with together(mesh):
        loader, changes = _loader(start, basis, checkpoint, progress, stack)
    engine = _build(start, basis, checkpoint, console.note)
    stack.callback(engine.close)
    with together(mesh):
        if mesh.rank == 0 and not (progress.finished() and standing.was_done):
            if changes:
                events.record("data_change", step=progress.step, differences=changes)
                console.note(f"going on with other data: {'; '.join(changes)}")
            begin(start.loaded, progress, standing, basis.precision, folder, metrics, events, console.note)
            _write_down(start, basis, engine, folder)
    if checkpoint is not None:
        take_over_evaluation(progress, config, metrics, mesh)
    remarks = _remarks(checkpoint, start.loaded, progress, basis.data.tokenizer.vocab_size)
    for line in (*start.notes, *remarks, *lane_lines(basis.data, mesh.data_size)):
        console.note(line)
    console.max_steps = progress.max_steps
    over = f" x {mesh.world_size} processes ({_layout_name(start.layout)})" if mesh.world_size > 1 else ""
    console.note(
        f"training on {_device_name(basis.device)}{over} in {basis.precision}; run folder {folder.path}"
    )
    return Run(
        config=config,
        folder=folder,
        shape=basis.shape,
        device=basis.device,
        precision=basis.precision,
        micro_batch_size=basis.micro_batch_size,
        data=basis.data,
        heldout=_heldout(start, basis, console.note),
        loader=loader,
        engine=engine,
        progress=progress,
        console=console,
        metrics=metrics,
        events=events,
        mesh=mesh,
        layout=start.layout,
        control=Control(mesh),
        was_done=standing.was_done,
        saved_step=None if checkpoint is None else progress.step,
    )


def _lay_basis(
    start: Start, folder: RunFolder, checkpoint: Checkpoint | None, note: Callable[[str], None]
) -> Basis:
    """Prepares the data and settles sizes; everything that can be wrong is found here."""
    config, layout, mesh = start.config, start.layout, start.mesh
    elsewhere = _find_elsewhere(config.data, mesh)
    with together(mesh):
        if config.run.deterministic:
            make_deterministic()
        device = choose_device()
        precision = choose_precision(start.precision, device)
        least = resolved_model(config, 1)  # a vocabulary that is not known yet adds to it
        _require_room(start, folder, least, device, precision)
        tokenizer = None if checkpoint is None else tokenizer_of_run(checkpoint, start.loaded)

        def accept(tokenizer: Tokenizer) -> None:  # before sources are built, which may take hours
            check_start(start.loaded, start.known(tokenizer.vocab_size))
            shape = resolved_model(config, tokenizer.vocab_size)
            if checkpoint is not None:
                check_same_model(checkpoint, shape)
            _require_room(start, folder, shape, device, precision)

        data = prepare(
            config.data, note, seed=config.run.seed, known=elsewhere, tokenizer=tokenizer, accept=accept
        )
        check_start(start.loaded, start.known(data.tokenizer.vocab_size, data.heldout_targets > 0))
        shape = resolved_model(config, data.tokenizer.vocab_size)
        fitting = choose_micro_batch(config, shape, precision, device, layout)
    agree(mesh, {"precision": precision, **_data_facts(data)})
    micro_batch_size = min(int(text) for text in mesh.gather_texts(str(fitting)))
    with together(mesh):
        derived = derive(
            config,
            vocab_size=data.tokenizer.vocab_size,
            data_parallel_size=mesh.data_size,
            micro_batch_size=micro_batch_size,
        )
        note(show_derived(derived).rstrip())
    accumulation = accumulation_steps(config, mesh.data_size, micro_batch_size)
    return Basis(device, precision, data, shape, micro_batch_size, accumulation)


def _require_room(
    start: Start, folder: RunFolder, shape: ModelShape, device: torch.device, precision: str
) -> None:
    require_memory(start.loaded, shape, start.layout, device, precision, start.local_size)
    require_disk(start.loaded, shape, folder)


def _find_elsewhere(data: Data, mesh: Mesh) -> dict[str, Found]:
    """What rank 0 finds of sources that are not on local disks."""
    found = json.loads(first_only(mesh, lambda: json.dumps(find_elsewhere(data))))
    return {
        place: Found([File(*file) for file in files], [Unit(*unit) for unit in units], mistake)
        for place, (files, units, mistake) in found.items()
    }


def _loader(
    start: Start, basis: Basis, checkpoint: Checkpoint | None, progress: Progress, stack: ExitStack
) -> tuple[TrainLoader, list[str]]:
    """What gives the batches from here on, closed by `stack`; how its data differ from the checkpoint's."""
    config, mesh = start.config, start.mesh
    loader = TrainLoader(
        basis.data, config.data, config.run.seed, config.train.global_batch_size, basis.micro_batch_size,
        rank=mesh.data_rank, world_size=mesh.data_size,
        hash_rows=mesh.tensor_size > 1 or config.monitor.log_samples,
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
    if progress.max_steps is not None:
        loader.check_supply(progress.max_steps)
    if not progress.finished():
        loader.start()
    return loader, changes


def _data_facts(data: Prepared) -> dict[str, str]:
    """What the data are known by, in words."""
    facts = {"tokenizer": data.tokenizer.hash}
    for source in data.fingerprint["sources"]:
        size = source["kind"] if source["tokens"] is None else f"{source['tokens']} tokens"
        what = f"{size}, digest {source['digest']}, held out {source['heldout']}"
        facts[f"data source {source['name']}"] = what
    return facts


def _build(start: Start, basis: Basis, checkpoint: Checkpoint | None, note: Callable[[str], None]) -> Engine:
    """The engine with the checkpoint's weights or else its initial ones, compiled where that is possible."""
    config, device = start.config, basis.device
    with together(start.mesh):
        compiled = config.kernels.compile is not False
        missing = compiler_missing(device) if compiled else None
        if missing is not None:
            if config.kernels.compile is True:
                raise UserError(f"kernels.compile: torch.compile cannot work here: {missing}")
            note(f"training without torch.compile: {missing}")
            compiled = False
        backend = choose_backend(config.kernels.attention, device, compiled, config.data.sequence_length)
    agree(start.mesh, {"torch.compile": missing or "can work", "attention": backend})
    return build_engine(
        basis.shape, config, start.layout, start.mesh,
        device=device, precision=basis.precision, micro_batch_size=basis.micro_batch_size,
        accumulation_steps=basis.accumulation_steps, backend=backend, compiled=compiled, note=note,
        source=checkpoint, updates=0 if checkpoint is None else checkpoint.state["updates"],
    )  # fmt: skip


def _open_records(folder: RunFolder, mesh: Mesh, stack: ExitStack) -> tuple[MetricsFile, EventLog]:
    """The run's record, which rank 0 keeps; that of the others goes nowhere. `stack` closes it."""
    places = ["metrics.jsonl", "events.jsonl"]
    metrics, events = (os.devnull if mesh.rank > 0 else folder.path / name for name in places)
    records = MetricsFile(metrics), EventLog(events)
    for record in records:
        stack.callback(record.close)
    return records


def _write_down(start: Start, basis: Basis, engine: Engine, folder: RunFolder) -> None:
    """What the run is computed with, into its folder."""
    folder.write_json("manifest.json", _manifest(start, basis))
    if engine.deepspeed_config is None:
        folder.remove("deepspeed.json")  # of an earlier layout
    else:
        folder.write_json("deepspeed.json", engine.deepspeed_config)


def _heldout(start: Start, basis: Basis, note: Callable[[str], None]) -> HeldOut | None:
    """None where nothing is held out, or nothing of it is a target; where that was not asked for, told."""
    config, mesh = start.config, start.mesh
    if basis.data.heldout_targets:
        return HeldOut(basis.data, basis.micro_batch_size, mesh.data_rank, mesh.data_size)
    if config.evaluate.every_steps or config.data.heldout_every:
        note(f"nothing will be evaluated: {nothing_held_out(Settings(config, start.loaded.origins))}")
    return None


def _remarks(
    checkpoint: Checkpoint | None, loaded: Loaded, progress: Progress, tokenizer_size: int
) -> Iterator[str]:
    """What a user should know before the first step, and the settings alone do not show."""
    config = loaded.config
    if size_of(config.data.tokenizer) is None:  # else it is among the remarks of the configuration
        yield from vocabulary_remarks(Settings(config, loaded.origins, Known(tokenizer_size=tokenizer_size)))
    if checkpoint is not None:
        yield f"resuming from {checkpoint.path} at step {progress.step}"
        if settings_of(checkpoint).train.max_steps is not None and config.train.max_steps is None:
            yield f"train.max_steps is not set now: the run keeps the {progress.max_steps} steps that it had"
    if progress.max_steps != config.train.max_steps and progress.max_steps is not None:
        yield from length_remarks(Settings(config, loaded.origins), progress.max_steps)


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


def _manifest(start: Start, basis: Basis) -> dict[str, Any]:
    return {
        **software(),
        "host": platform.node(),
        "device": _device_name(basis.device),
        "command": sys.argv,
        "config": str(start.loaded.path),
        "precision": basis.precision,
        "micro_batch_size": basis.micro_batch_size,
        "accumulation_steps": basis.accumulation_steps,
        "layout": start.layout.to_dict(),
    }


def _layout_name(layout: Layout) -> str:
    """As in "ZeRO-2 x 4, tensor parallel x 2"."""
    how = f"ZeRO-{layout.zero_stage}" if layout.zero_stage else "data parallel"
    name = f"{how} x {layout.data_parallel_size}"
    if layout.tensor_parallel_size > 1:
        name += f", tensor parallel x {layout.tensor_parallel_size}"
    return name


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({torch.get_num_threads()} threads)"
