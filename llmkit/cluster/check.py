"""Checks the runs of a job with what its nodes will have, before it waits in the queue."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from llmkit.cluster.request import Request
from llmkit.cluster.sweep import run_names
from llmkit.config.load import Loaded
from llmkit.config.mistakes import printable
from llmkit.config.schema import Data
from llmkit.data.sources.urls import is_url
from llmkit.errors import UserError
from llmkit.files import may_exist
from llmkit.parallel.accelerate import AccelerateConfig
from llmkit.plan.plan import Known
from llmkit.plan.resolve import resolve_plan

Load = Callable[[str, Sequence[str]], Loaded]
FILES = ("text", "jsonl", "parquet", "arrow", "shards")
"""Types of sources whose `path` is one of a file system."""


class CheckedRun(NamedTuple):
    """A run of a job. overrides: those of its task of a sweep. remarks: on its settings."""

    name: str
    folder: str
    overrides: tuple[str, ...]
    remarks: tuple[str, ...]


def check_runs(
    config: str, overrides: Sequence[str], request: Request, load: Load, accelerate: AccelerateConfig | None
) -> tuple[list[CheckedRun], list[str]]:
    """The runs of a job: one, or one for each task of a sweep; and what is wrong with them, without repeats.

    load: reads a configuration with overrides. accelerate: the launcher's configuration, if it has one.
    """
    runs, mistakes = list[CheckedRun](), dict[str, None]()
    for task in _tasks(config, overrides, request, load):
        try:
            runs.append(_checked([*overrides, *task], task, request, accelerate, partial(load, config)))
        except UserError as error:
            mistakes |= dict.fromkeys(single_mistakes(str(error)))
    return runs, [*mistakes, *_shared_folders(runs)]


def single_mistakes(message: str) -> list[str]:
    """The mistakes that a message names: below its heading each begins a line that is indented by two."""
    _, *lines = message.split("\n")
    found = list[str]()
    for line in lines:
        if line.startswith("   ") and found:
            found[-1] += "\n" + line[2:]
        else:
            found.append(line.removeprefix("  "))
    return found or [message]


def _tasks(config: str, overrides: Sequence[str], request: Request, load: Load) -> list[tuple[str, ...]]:
    """The overrides of each task, with a name for its run; of a job without a sweep there are none."""
    sweep = request.sweep
    if not sweep.axes:
        return [()]
    if sweep.names_runs:
        return sweep.tasks
    try:
        name = load(config, [*overrides, *sweep.tasks[0]]).config.run.name
    except UserError:
        name = "run"  # what is wrong is found again by the check of each task
    return [(*task, f"run.name={own}") for task, own in zip(sweep.tasks, run_names(name, sweep), strict=True)]


def _checked(
    overrides: Sequence[str], task: tuple[str, ...], request: Request, accelerate: AccelerateConfig | None,
    load: Callable[[Sequence[str]], Loaded],
) -> CheckedRun:  # fmt: skip
    """The run of a task. Raises UserError that names all that is wrong with it."""
    world = request.world_size
    loaded = load([f"parallel.world_size={world}", *overrides])
    asked = loaded.config.parallel.world_size
    if asked != world:
        made = f"{request.layout} make {world}"
        where = loaded.origins["parallel.world_size"]
        raise UserError(f"parallel.world_size is {asked} ({where}), but {made}; leave it out")
    resolve_plan(loaded, Known(world_size=world, accelerate=accelerate))
    run = loaded.config.run
    remarks = (*loaded.remarks, *_missing(loaded.config.data))
    return CheckedRun(run.name, os.path.join(run.dir, run.name), task, remarks)


def _missing(data: Data) -> Iterator[str]:
    """Notes on files of the corpus that are not here: no mistake, as nodes may have disks of their own."""
    for number, source in enumerate(data.sources):
        if source.type not in FILES:
            continue
        paths = [source.path] if isinstance(source.path, str) else source.path or []
        for path in (path.removeprefix("file://") for path in paths):
            if is_url(path) or may_exist(path) or next(glob.iglob(path, recursive=True), None) is not None:
                continue
            what = f"there is no {printable(path)} here (looked from {os.getcwd()})"
            yield f"data.sources.{number}.path: {what}; a job that does not find it on its nodes ends at once"


def _shared_folders(runs: Sequence[CheckedRun]) -> Iterator[str]:
    """Run folders that two tasks have."""
    seen = dict[str, CheckedRun]()
    for run in runs:
        other = seen.setdefault(os.path.abspath(run.folder), run)
        if other is not run:
            tasks = f"{' '.join(other.overrides)} and {' '.join(run.overrides)}"
            yield printable(f"--array: two tasks have the run folder {run.folder}: {tasks}", 600)
            return
