"""From a configuration to a run that is ready for its next step."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from llmkit import __version__
from llmkit.checkpoint.read import Checkpoint, folders, newest
from llmkit.config.derive import derive, resolved_model
from llmkit.config.load import Loaded
from llmkit.config.resume import compare
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.config.show import show_derived, to_yaml
from llmkit.data.build import prepare
from llmkit.data.evaluation import HeldOut
from llmkit.data.loader import TrainLoader
from llmkit.data.tokenizer import Tokenizer
from llmkit.engine.base import Engine
from llmkit.engine.native import NativeEngine
from llmkit.errors import UserError
from llmkit.kernels.attention import choose_backend
from llmkit.kernels.compiler import compiler_missing
from llmkit.loop.device import choose_device, choose_micro_batch, choose_precision, make_deterministic
from llmkit.loop.progress import Progress
from llmkit.loop.run import Run
from llmkit.model.gpt import GPT
from llmkit.monitor.console import Console
from llmkit.monitor.events import EventLog
from llmkit.monitor.metrics import MetricsFile
from llmkit.run_folder import RunFolder

BYTES_PER_PARAMETER = 12
"""Of a checkpoint: fp32 master and two moments."""


def set_up(loaded: Loaded, folder: RunFolder, fresh: bool, console: Console, stack: ExitStack) -> Run:
    """Builds all parts, resumes from the newest good checkpoint, and says what it chose.

    What needs closing is given to `stack`. Raises UserError before anything in the folder changes if
    the run in it is another one.
    """
    config = loaded.config
    checkpoint = find_checkpoint(config, folder, fresh, console.note)
    if config.run.deterministic:
        make_deterministic()
    device = choose_device()
    precision = choose_precision(config.train.precision, device)
    data = prepare(config.data, console.note)
    tokenizer_size = data.tokenizer.vocab_size
    shape = resolved_model(config, tokenizer_size)
    if checkpoint is not None:
        _check_same_model(checkpoint, shape, data.tokenizer)
    micro_batch_size = choose_micro_batch(config, shape, precision, device)
    derived = derive(config, vocab_size=tokenizer_size, micro_batch_size=micro_batch_size)
    console.note(show_derived(derived).rstrip())
    # One more than is kept exists while a save is under way; those that lie there already have their place.
    copies = max(1, config.checkpoint.keep_last + 1 - len(folders(folder.checkpoints)))
    folder.require_space(BYTES_PER_PARAMETER * shape.num_parameters * copies)

    model = build_model(config, shape, device, console.note)
    engine: Engine = NativeEngine(
        model, config.optimizer, precision=precision, gradient_clipping=config.train.gradient_clipping
    )
    progress = Progress(max_steps=config.train.max_steps)
    loader = TrainLoader(data, config.data, config.run.seed, config.train.global_batch_size, micro_batch_size)
    stack.callback(engine.close)
    stack.callback(loader.close)
    if checkpoint is not None:
        loader.load_state(checkpoint.state["data"])
        engine.write_pieces(checkpoint, checkpoint.state["updates"])
        progress = resumed_progress(checkpoint, config)
    metrics, events = MetricsFile(folder.path / "metrics.jsonl"), EventLog(folder.path / "events.jsonl")
    stack.callback(metrics.close)
    stack.callback(events.close)
    metrics.cut_back(progress.step)
    folder.write_text("config.yaml", to_yaml(config))
    folder.write_json("manifest.json", _manifest(loaded, device, precision, micro_batch_size))
    for line in _remarks(checkpoint, config, precision, progress):
        console.note(line)
    console.max_steps = progress.max_steps
    console.note(f"training on {_device_name(device)} in {precision}; run folder {folder.path}")
    heldout = HeldOut(data, micro_batch_size) if data.heldout else None
    saved_step = None if checkpoint is None else progress.step
    return Run(
        config, folder, shape, device, precision, micro_batch_size, data, heldout, loader, engine,
        progress, console, metrics, events, saved_step=saved_step,
    )  # fmt: skip


def find_checkpoint(
    config: Config, folder: RunFolder, fresh: bool, note: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a new run.

    Raises UserError where the folder holds another run, or one that would have to start over.
    """
    checkpoint = newest(folder.checkpoints, note)
    if checkpoint is not None:
        _check_same_run(checkpoint, config, fresh, folder, note)
    elif damaged := folders(folder.checkpoints):
        raise UserError(
            f"none of the {len(damaged)} checkpoints in {folder.checkpoints} is usable; "
            "bring a good one back, or choose another run.name to start anew"
        )
    elif folder.is_done:
        raise UserError(
            f"{folder.path} is the record of a finished run whose checkpoints are gone; "
            "choose another run.name to start anew, or move the folder away"
        )
    return checkpoint


def _remarks(
    checkpoint: Checkpoint | None, config: Config, precision: str, progress: Progress
) -> Iterator[str]:
    """What a user should know before the first step."""
    if checkpoint is not None:
        yield f"resuming from {checkpoint.path} at step {progress.step}"
        if (before := checkpoint.state["precision"]) != precision:
            yield f"changed since the checkpoint: precision {before} -> {precision}"
    if progress.max_steps is not None and config.schedule.warmup_steps >= progress.max_steps:
        yield (
            f"schedule.warmup_steps {config.schedule.warmup_steps} is not less than the "
            f"{progress.max_steps} steps of the run: the learning rate does not get past its warm-up"
        )


def open_folder(config: Config, environment: Mapping[str, str]) -> RunFolder:
    """The run folder, held by this process. $STOP_FILE names a second file that asks for a stop."""
    stop_file = environment.get("STOP_FILE")
    path = Path(config.run.dir) / config.run.name
    return RunFolder.open(path, " ".join(sys.argv), Path(stop_file) if stop_file else None)


def build_model(config: Config, shape: ModelShape, device: torch.device, note: Callable[[str], None]) -> GPT:
    """The model with its initial weights on `device` in fp32, compiled where that is possible."""
    compiled = config.kernels.compile is not False
    missing = compiler_missing(device) if compiled else None
    if missing is not None:
        if config.kernels.compile is True:
            raise UserError(f"kernels.compile: torch.compile cannot work here: {missing}")
        note(f"training without torch.compile: {missing}")
        compiled = False
    backend = choose_backend(config.kernels.attention, device, compiled, config.data.sequence_length)
    with torch.device(device):
        model = GPT(shape, backend)
    model.initialise(config.run.seed)
    if compiled:
        model.compile_parts()
    return model


def resumed_progress(checkpoint: Checkpoint, config: Config) -> Progress:
    """The counters of the checkpoint under today's settings: more steps let a finished run go on."""
    progress = Progress.from_json(checkpoint.state["progress"])
    if config.train.max_steps is not None:
        progress.max_steps = config.train.max_steps
    patience = config.evaluate.early_stopping
    progress.stopped_early = patience is not None and progress.evaluations_without_gain >= patience
    return progress


def _check_same_run(
    checkpoint: Checkpoint, config: Config, fresh: bool, folder: RunFolder, note: Callable[[str], None]
) -> None:
    if fresh:
        raise UserError(
            f"--fresh: {folder.path} holds checkpoints up to step {checkpoint.step}; "
            "choose another run.name, or delete the folder yourself"
        )
    differences = compare(checkpoint.config, config.model_dump(mode="json"))
    differences.raise_if_fixed(folder.path)
    for line in differences.warned:
        note(f"changed since the checkpoint: {line}")


def _check_same_model(checkpoint: Checkpoint, shape: ModelShape, tokenizer: Tokenizer) -> None:
    old, new = checkpoint.model, shape.to_dict()
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise UserError(f"{checkpoint.path} holds another model: {', '.join(changed)}")
    stored = checkpoint.state["data"]["fingerprint"].get("tokenizer")
    if stored != tokenizer.hash:
        raise UserError(
            f"{checkpoint.path} was trained with another tokenizer (hash {stored}, now {tokenizer.hash}): "
            "its token ids mean other text"
        )


def _manifest(loaded: Loaded, device: torch.device, precision: str, micro_batch_size: int) -> dict[str, Any]:
    return {
        "llmkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": platform.node(),
        "device": _device_name(device),
        "command": sys.argv,
        "config": str(loaded.path),
        "precision": precision,
        "world_size": 1,
        "micro_batch_size": micro_batch_size,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU ({torch.get_num_threads()} threads)"
