"""`llmkit new`: a complete, commented, compute-optimal configuration from one number."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from llmkit.command_line import show
from llmkit.config.load import load
from llmkit.config.mistakes import printable
from llmkit.config.schema import RUN_NAME
from llmkit.errors import UserError
from llmkit.files import may_exist, write_atomic
from llmkit.recipes import text
from llmkit.recipes.compose import Source, compose
from llmkit.recipes.devices import Device, device
from llmkit.recipes.document import amount, to_text
from llmkit.recipes.rules import Budget, Size, Text, budget, by_depth, by_flops, by_parameters

RUNGS = 4
"""Runs of a ladder below its target."""
RUNG_RATIO = 4.0
"""FLOPs of a rung, over those of the one below it, about: each has the optimal training of its size."""
TARGET = "target"
"""Name of the file, in a ladder's folder, whose loss is to be predicted."""
FEWEST_STEPS = 100
"""Fewer are no training that the rules know of."""
BYTES_PER_TOKEN = 4
"""Of text, about; only for the note on how much of it is needed."""


def new_command(options: argparse.Namespace, show: Callable[[str], None] = show) -> int:
    """Writes NAME.yaml, or with --ladder the folder NAME. Raises UserError for what cannot be."""
    name = _name(options.name)
    if options.gpus < 1:
        raise UserError(f"new: --gpus is {options.gpus}; it must be at least 1")
    if options.sequence_length is not None and options.sequence_length < 2:
        raise UserError(f"new: --sequence-length is {options.sequence_length}; it must be at least 2")
    if options.hours is not None and options.device is None:
        raise UserError("new: --hours needs --device: what it is that trains so long (cpu: this machine's)")
    on = None if options.device is None else device(options.device)
    entry = text.source(options.data)
    tokenizer, vocab_size = text.tokenizer(options.tokenizer)
    source = Source(entry, tokenizer)
    size, trained = _chosen(options, Text(vocab_size, options.sequence_length), on)
    files = {f"{name}.yaml": (name, size, trained)}
    if options.ladder:
        files = _rungs(name, size, trained)
    for run, rung, budgeted in files.values():
        _require_steps(run, rung, budgeted, options.gpus)
    texts = {
        file: _text(run, rung, budgeted, source, on, options) for file, (run, rung, budgeted) in files.items()
    }
    _write(texts, Path(os.path.expanduser(options.out)), options.force)
    for file, (_, rung, budgeted) in files.items():
        show(f"{os.path.join(options.out, file)}: {_summary(rung, budgeted, on, options.gpus)}")
    if entry["type"] == "stdlib" and trained.tokens > 12e6:
        show(
            f"note: this needs about {trained.tokens * BYTES_PER_TOKEN / 1e9:,.3g} GB of text, and Python's "
            "own library has 0.01: name other text with --data"
        )
    return 0


def _require_steps(run: str, size: Size, trained: Budget, gpus: int) -> None:
    """Raises UserError for a training of next to no steps, or one that leaves devices without rows."""
    if trained.steps < FEWEST_STEPS:
        raise UserError(
            f"new: {run}: its {amount(trained.tokens)} tokens are {trained.steps} steps of one row of "
            f"{size.sequence_length:,}, and a training takes {FEWEST_STEPS} steps at least; ask for shorter "
            "rows by --sequence-length, or for a larger model"
        )
    if trained.rows < gpus:
        raise UserError(
            f"new: {run}: its best batch has {trained.rows} rows, too few for {gpus} devices; give --gpus "
            f"{trained.rows} at most, or ask for a larger model"
        )


def _name(asked: str) -> str:
    """The name of the run: its file's, too. Raises UserError for what cannot be one."""
    name = re.sub(r"\.ya?ml$", "", asked)
    if not re.fullmatch(RUN_NAME, name):
        raise UserError(
            f"new: {printable(asked, 80)!r} cannot be the name of a run: letters, digits, '.', '_' and '-', "
            "at most 64 of them and a letter or digit first; the folder is named by --out"
        )
    return name


def _chosen(options: argparse.Namespace, text: Text, on: Device | None) -> tuple[Size, Budget]:
    """The model and its training, by the one of the four options that is given."""
    if options.depth is not None:
        size = by_depth(options.depth, text)
        return size, budget(size)
    if options.params is not None:
        size = by_parameters(options.params, text)
        return size, budget(size)
    if options.flops is not None:
        return _spending(options.flops, text, "--flops")
    assert on is not None
    return _spending(options.hours * 3600 * options.gpus * on.flops, text, "--hours (as FLOPs)")


def _spending(flops: float, text: Text, asked: str) -> tuple[Size, Budget]:
    """The model whose optimal training is nearest to so many FLOPs, trained for exactly these."""
    size = by_flops(flops, text, asked)
    optimal = budget(size)
    return size, budget(size, optimal.tokens * flops / optimal.flops)


def _rungs(name: str, size: Size, trained: Budget) -> dict[str, tuple[str, Size, Budget]]:
    """File -> run, model and training: the rungs, and the target above them.

    All have the target's vocabulary and context: losses of others could not be compared.
    """
    text = Text(size.vocab_size, size.sequence_length)
    files = {}
    for rung in range(1, RUNGS + 1):
        flops = trained.flops / RUNG_RATIO ** (RUNGS + 1 - rung)
        chosen = by_flops(flops, text, f"--ladder, rung {rung} (as FLOPs),")
        run = _name(f"{name}-rung-{rung}")
        files[os.path.join(name, f"rung-{rung}.yaml")] = (run, chosen, budget(chosen))
    sizes = [rung.shape.num_parameters for _, rung, _ in files.values()] + [size.shape.num_parameters]
    if sorted(set(sizes)) != sizes:
        raise UserError(
            f"new: --ladder: a target of {size.shape.num_parameters:,} parameters leaves no {RUNGS} sizes of "
            "its family below it; ask for a larger one"
        )
    return files | {os.path.join(name, f"{TARGET}.yaml"): (name, size, trained)}


def _text(
    run: str, size: Size, trained: Budget, source: Source, on: Device | None, options: argparse.Namespace
) -> str:
    """The text of a file."""
    sections = compose(run, size, trained, source, on, options.gpus)
    heading = (
        f"{run}: {_summary(size, trained, on, options.gpus)}.\n"
        f"Written by `{_command(options)}`, by the rules of docs/recipes.md. What is not here has its "
        "default: `llmkit config` prints all of it."
    )
    return to_text(sections, heading)


def _command(options: argparse.Namespace) -> str:
    """The command that writes the same again."""
    words = ["llmkit", "new", options.name]
    for key in ("depth", "params", "flops", "hours", "device", "data", "tokenizer", "sequence_length"):
        if (value := getattr(options, key)) is not None:
            text = _shortest(value) if isinstance(value, float) else str(value)
            words += [f"--{key.replace('_', '-')}", text]
    words += ["--gpus", str(options.gpus)] if options.gpus > 1 else []
    return printable(shlex.join(words + (["--ladder"] if options.ladder else [])), 600)


def _shortest(value: float) -> str:
    """A number in the fewest digits that are read back as the same."""
    return next(text for digits in range(1, 18) if float(text := f"{value:.{digits}g}") == value)


def _summary(size: Size, trained: Budget, on: Device | None, gpus: int) -> str:
    """A run in a line."""
    line = (
        f"{amount(size.shape.num_parameters)} parameters ({size.depth} block{'s' * (size.depth > 1)} of "
        f"{size.width}), {amount(trained.tokens)} tokens, {trained.flops:.3g} FLOPs"
    )
    if on is None:
        return line
    hours = trained.flops / (on.flops * gpus) / 3600
    time = f"{hours:,.3g} h" if hours >= 1 else f"{60 * hours:,.3g} min"
    return f"{line}; about {time} at {on.how}" + (f", on {gpus} of them" if gpus > 1 else "")


def _write(texts: dict[str, str], out: Path, force: bool) -> None:
    """Writes all files, or none where one is there already. Raises UserError."""
    if not may_exist(out) or (os.path.exists(out) and not os.path.isdir(out)):
        raise UserError(f"new: --out {out}: there is no such folder; make it first")
    paths = {out / file: text for file, text in texts.items()}
    if (there := [path for path in paths if os.path.lexists(path)]) and not force:
        raise UserError(f"new: {there[0]} is there already; choose another name, or replace it with --force")
    try:
        for path, text in paths.items():
            path.parent.mkdir(exist_ok=True)
            with write_atomic(path) as file:
                file.write(text.encode())
    except OSError as error:
        raise UserError(f"new: {error.filename or path} cannot be written: {error.strerror}") from error
    for path in paths:
        load(path)
