"""`llmkit checkpoint list`: a table of checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.checkpoint.files import OpenFiles
from llmkit.checkpoint.keeping import Best, read_best, step_of
from llmkit.checkpoint.read import Checkpoint, Damaged, load
from llmkit.checkpoints.found import find
from llmkit.checkpoints.recorded import Recorded, shown_time
from llmkit.command_line import print_json, to_stderr
from llmkit.config.memory import show_bytes
from llmkit.config.mistakes import printable
from llmkit.errors import RunFault, UserError
from llmkit.monitor.record import at
from llmkit.monitor.terminal import Painter, size_of, takes_live_view
from llmkit.watch.table import Column, draw

GOOD, UNREAD, DAMAGED = "good", "sizes right", "damaged"


@dataclass(frozen=True)
class CheckpointLine:
    """A checkpoint in the table. None = not known.

    saved: when, as "2026-12-24T14:32:10+00:00". size: bytes. loss, heldout: nats a target. kept: why the run
    keeps it. state: "good" = all of it was read, "sizes right" = it was not read, "damaged", "unreadable".
    reason: what is wrong.
    """

    name: str
    path: str
    step: int | None
    saved: str | None
    size: int | None
    loss: float | None
    heldout: float | None
    layout: str | None
    kept: list[str]
    state: str
    reason: str


def list_command(path: Path, *, quick: bool, as_json: bool) -> int:
    """Prints the table, or JSON, the oldest first. Raises UserError where there are no checkpoints.

    The newest ones are read until one is good, the others looked at alone. quick: none is read.
    """
    lines = lines_of(path, quick)
    if as_json:
        print_json([asdict(line) for line in lines])
        return 0
    width = size_of(sys.stdout)[0] if sys.stdout.isatty() else None
    print("\n".join(table(lines, width, Painter(takes_live_view(sys.stdout)))))
    for line in lines:
        if line.reason:
            print(f"{line.name} is {line.state}: {line.reason}")
    return 0


def lines_of(path: Path, quick: bool) -> list[CheckpointLine]:
    """What there is to know of the checkpoints at a path, the oldest first."""
    found = find(path)
    recorded = Recorded(found.run)
    opened: list[tuple[Path, Checkpoint | None, str, str]] = []
    is_good = quick
    for folder in reversed(found.folders):
        checkpoint, state, reason = _look(folder, read=not is_good)
        if not os.path.lexists(folder):
            continue  # a run that is under way has deleted it meanwhile
        is_good = is_good or state == GOOD
        opened.insert(0, (folder, checkpoint, state, reason))
    newest = next((each for _, each, state, _ in reversed(opened) if each is not None), None)
    rules = {}
    if newest is not None and not found.single:
        rules = kept_by(found.folders, newest.config, _best(found.root))
    return [
        _line(folder, checkpoint, recorded, rules.get(folder, []), state, reason)
        for folder, checkpoint, state, reason in opened
    ]


def _best(root: Path) -> Best | None:
    """The best one; None where it is not known, and why on standard error."""
    try:
        return read_best(root)
    except Damaged as error:
        to_stderr(str(error))
        return None


def kept_by(
    folders: Sequence[Path], config: Mapping[str, Any], best: Best | None = None
) -> dict[Path, list[str]]:
    """Why a run of these settings keeps each of its checkpoints, which are in the order of their steps."""
    keep_last, keep_every = at(config, "checkpoint", "keep_last"), at(config, "checkpoint", "keep_every")
    found: dict[Path, list[str]] = {folder: [] for folder in folders}
    for folder in folders[-keep_last:] if isinstance(keep_last, int) else ():
        found[folder].append("newest" if folder == folders[-1] else f"keep_last {keep_last}")
    for folder in folders if isinstance(keep_every, int) and keep_every > 0 else ():
        if (step_of(folder) or 1) % keep_every == 0:
            found[folder].append(f"keep_every {keep_every}")
    for folder in folders:
        if best is not None and step_of(folder) == best.step:
            found[folder].append("best")
    return found


def _look(folder: Path, read: bool) -> tuple[Checkpoint | None, str, str]:
    """A checkpoint, how it is, and what is wrong with it. read: all of it."""
    try:
        checkpoint = load(folder, OpenFiles())
        problem = next(checkpoint.problems(sizes_only=not read), "")
    except Damaged as error:
        return None, DAMAGED, str(error)
    except (RunFault, UserError) as error:  # of another version, or not to be read now or by this user
        return None, "unreadable", str(error)
    return checkpoint, DAMAGED if problem else GOOD if read else UNREAD, problem


def _line(
    folder: Path, checkpoint: Checkpoint | None, recorded: Recorded, kept: list[str], state: str, reason: str
) -> CheckpointLine:
    step = step_of(folder) if checkpoint is None else checkpoint.step
    if checkpoint is not None and (average := checkpoint.state.get("average")):
        kept = [f"average of {len(average['of'])}"]
    elif checkpoint is not None and "imported" in checkpoint.state:
        kept = ["import"]
    return CheckpointLine(
        name=printable(folder.name), path=str(folder), step=step, saved=shown_time(recorded.saved(folder)),
        size=None if checkpoint is None else checkpoint.nbytes,
        loss=None if step is None else recorded.loss(step),
        heldout=None if step is None else recorded.heldout(step, checkpoint),
        layout=None if checkpoint is None else layout_of(checkpoint), kept=kept, state=state,
        reason=printable(reason, 500),
    )  # fmt: skip


def layout_of(checkpoint: Checkpoint) -> str:
    """As in "4: ZeRO-3, TP 2": processes, and how the work was shared; else how many of them have written."""
    layout = checkpoint.state.get("layout", {})
    world = at(layout, "world_size")
    if not isinstance(world, int):
        return f"written by {checkpoint.writers}"
    stage, tensor = at(layout, "zero_stage"), at(layout, "tensor_parallel_size")
    context, experts = at(layout, "context_parallel_size"), at(layout, "expert_parallel_size")
    how = [f"ZeRO-{stage}"] * bool(stage) + [f"TP {tensor}"] * ((tensor or 1) > 1)
    how += [f"CP {context}"] * ((context or 1) > 1)
    how += [f"EP {experts}"] * ((experts or 1) > 1)
    return f"{world}: {', '.join(how)}" if how else str(world)


COLUMNS: tuple[tuple[str, Callable[[CheckpointLine], str]], ...] = (
    ("checkpoint", lambda line: line.name),
    ("saved", lambda line: (line.saved or "")[:19].replace("T", " ")),
    ("size", lambda line: "" if line.size is None else show_bytes(line.size)),
    ("loss", lambda line: "" if line.loss is None else f"{line.loss:.4f}"),
    ("held-out", lambda line: "" if line.heldout is None else f"{line.heldout:.4f}"),
    ("layout", lambda line: line.layout or ""),
    ("kept", lambda line: ", ".join(line.kept)),
    ("state", lambda line: line.state),
)
"""Headings, and the text of a checkpoint below each."""
STYLES = {GOOD: "green", UNREAD: "", DAMAGED: "red", "unreadable": "red"}


def table(lines: Sequence[CheckpointLine], width: int | None, paint: Callable[[Any], str] = str) -> list[str]:
    """The lines of the table, with a heading; what no checkpoint has is left out. width: of the terminal."""
    columns = [
        Column(
            heading, [text(line) for line in lines], left=heading not in ("size", "loss", "held-out"),
            styled=heading == "state", shortest=12 if heading == "checkpoint" else None,
        )
        for heading, text in COLUMNS
    ]  # fmt: skip
    return list(draw(columns, [STYLES[line.state] for line in lines], width, paint))
