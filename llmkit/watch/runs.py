"""`llmkit runs`: a table of the runs in a folder."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from llmkit.command_line import print_json
from llmkit.config.memory import show_bytes
from llmkit.config.mistakes import printable
from llmkit.errors import UserError
from llmkit.monitor.progress import ENDS, LARGEST, Progress
from llmkit.monitor.record import FILES, RunRecord, at
from llmkit.monitor.terminal import Painter, size_of, takes_live_view
from llmkit.monitor.text import duration, thousands
from llmkit.watch.table import Column, draw
from llmkit.watch.watched import whole

DEEPEST = 8
"""Folders between the one that is named and a run."""
WIDEST_NAME, NARROWEST_NAME = 48, 12


@dataclass(frozen=True)
class RunLine:
    """A run in the table. None = not known.

    name: its path below the folder. max_steps: where it ends. loss, heldout: the newest, nats. speed: tokens
    a second. age: seconds since it was last written to, or ended. size: bytes on the disk.
    """

    name: str
    path: str
    state: str
    reason: str
    step: int | None
    max_steps: int | None
    loss: float | None
    heldout: float | None
    speed: float | None
    layout: str | None
    age: float | None
    size: int | None = None


def runs_command(options: argparse.Namespace) -> int:
    """Prints the table, or JSON. Raises UserError where there is no such folder."""
    root = Path(options.folder)
    if not root.is_dir():
        raise UserError(f"runs: {root} is no folder; name the one that holds the run folders, such as runs")
    now = time.time()
    lines = [_line(folder, root, now, options.size) for folder in find_runs(root)]
    lines = sorted_lines(lines, options.sort if options.size or options.sort != "size" else "age")
    if options.json:
        print_json([asdict(line) for line in lines])
    elif not lines:
        print(f"there are no runs in {root}", file=sys.stderr)
    else:
        width = size_of(sys.stdout)[0] if sys.stdout.isatty() else None
        print("\n".join(table(lines, width, Painter(takes_live_view(sys.stdout)))))
    return 0


def find_runs(
    root: Path, depth: int = DEEPEST, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Path]:
    """The run folders in `root`, itself included; what lies in a run, or is hidden, is not looked at.

    Links to folders are followed, but not to those above them. A folder that cannot be read has no runs.
    above: device and inode of these.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        status = root.stat()
    except OSError:
        return
    if (own := (status.st_dev, status.st_ino)) in above:
        return
    if {entry.name for entry in entries} & {*FILES[:4]}:
        yield root
        return
    for entry in entries if depth else ():
        try:
            is_folder = not entry.name.startswith(".") and entry.is_dir()
        except OSError:
            continue
        if is_folder:
            yield from find_runs(Path(entry.path), depth - 1, above | {own})


def _line(folder: Path, root: Path, now: float, with_size: bool) -> RunLine:
    """As `read_line`; a run whose files cannot be read is in the table, too."""
    try:
        return read_line(folder, root, now, with_size)
    except UserError as error:
        unknown = dict.fromkeys(("step", "max_steps", "loss", "heldout", "speed", "layout", "age"))
        name, path = _name(folder, root), str(folder)
        return RunLine(name=name, path=path, state="unreadable", reason=printable(str(error)), **unknown)


def _name(folder: Path, root: Path) -> str:
    return printable(os.path.relpath(folder, root) if folder != root else folder.resolve().name)


def read_line(folder: Path, root: Path, now: float, with_size: bool = False) -> RunLine:
    """What there is to know of a run; an odd folder gives a line with little in it.

    now: seconds since 1970.
    """
    record = RunRecord(folder, now)
    newest, manifest, state = record.newest, record.manifest, record.state
    progress = Progress()
    for event in record.events:
        progress.take_event(event)
    steps = whole(manifest.get("max_steps")) if progress.max_steps is None else progress.max_steps
    loss = newest.get("loss_mean", newest.get("loss"))
    return RunLine(
        name=_name(folder, root), path=str(folder), state=state.name, reason=printable(state.reason),
        step=_step(record), max_steps=steps, loss=_number(loss),
        heldout=_number(newest.get("eval_loss")), speed=_number(newest.get("tokens_per_second")),
        layout=_layout(manifest), age=None if state.since is None else max(0.0, now - state.since),
        size=_size(folder) if with_size else None,
    )  # fmt: skip


def _step(record: RunRecord) -> int | None:
    """The newest step that is on record: a run may have stopped between two rows."""
    last = record.events[-1] if record.events else {}
    ended = last.get("step") if last.get("event") in ENDS else None
    return max(
        (step for step in (whole(record.newest.get("step")), whole(ended)) if step is not None), default=None
    )


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
        return None
    return float(value)


def _layout(manifest: dict[str, Any]) -> str | None:
    """As in "8: ZeRO-1, TP 2": processes, and how the work is shared."""
    world = whole(at(manifest, "layout", "world_size"))
    if world is None:
        return None
    names = ("zero_stage", "tensor_parallel_size", "context_parallel_size", "expert_parallel_size")
    stage, tensor, context, experts = (whole(at(manifest, "layout", name)) for name in names)
    how = [f"ZeRO-{stage}"] * bool(stage) + [f"TP {tensor}"] * ((tensor or 1) > 1)
    how += [f"CP {context}"] * ((context or 1) > 1)
    how += [f"EP {experts}"] * ((experts or 1) > 1)
    return f"{world}: {', '.join(how)}" if how else str(world)


def _size(folder: Path) -> int:
    """Bytes of all files; of one with several names once."""
    found: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def sorted_lines(lines: Sequence[RunLine], column: str) -> list[RunLine]:
    """By a column; of steps, speed and size the largest first, and what is not known last."""
    down = column in ("step", "speed", "size")

    def key(line: RunLine) -> tuple[bool, Any, str]:
        value = getattr(line, column)
        return value is None, (-value if down else value) if value is not None else 0, line.name

    return sorted(lines, key=key)


COLUMNS: tuple[tuple[str, Callable[[RunLine], str]], ...] = (
    ("name", lambda line: line.name),
    ("state", lambda line: line.state),
    ("step", lambda line: steps_text(line)),
    ("loss", lambda line: "" if line.loss is None else f"{line.loss:.4f}"),
    ("held-out", lambda line: "" if line.heldout is None else f"{line.heldout:.4f}"),
    ("tokens/s", lambda line: "" if line.speed is None else thousands(line.speed)),
    ("layout", lambda line: line.layout or ""),
    ("age", lambda line: "" if line.age is None else duration(line.age)),
    ("size", lambda line: "" if line.size is None else show_bytes(line.size)),
)
"""Headings, and the text of a run below each."""
STYLES = {
    "running": "cyan", "done": "green", "stopped": "yellow", "stalled": "yellow", "failed": "red",
    "unreadable": "red",
}  # fmt: skip
LEFT = ("name", "state", "layout")


def steps_text(line: RunLine) -> str:
    """Steps done, of how many: "741/1,500"."""
    done = "" if line.step is None else f"{line.step:,}"
    return done if line.max_steps is None else f"{done or 0}/{line.max_steps:,}"


def table(
    lines: Sequence[RunLine], width: int | None = None, paint: Callable[[Text], str] = str
) -> Iterator[str]:
    """The lines of the table, with a heading; columns without a value are left out.

    width: of the terminal, to which names are shortened. paint: gives styled text its colours.
    """
    columns = [
        Column(
            heading, [text(line) for line in lines], left=heading in LEFT, styled=heading == "state",
            widest=WIDEST_NAME if heading == "name" else None,
            shortest=NARROWEST_NAME if heading == "name" else None,
        )
        for heading, text in COLUMNS
    ]  # fmt: skip
    return draw(columns, [STYLES[line.state] for line in lines], width, paint)
