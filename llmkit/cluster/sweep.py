"""The tasks of `--array`: one for each combination of the values of some settings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmkit.config.mistakes import display
from llmkit.config.override import key_parts

MOST_TASKS = 1000
"""SLURM's own limit, unless a cluster has set another one (MaxArraySize)."""
LONGEST_NAME = 64
RUN_NAME = "run.name"


@dataclass(frozen=True)
class Sweep:
    """axes: settings, each with its values as overrides. at_once: tasks that may run at a time; None = all.

    mistakes: what is wrong with them, a sentence each.
    """

    axes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    at_once: int | None = None
    mistakes: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[tuple[str, ...]]:
        """The overrides of each task; the last setting varies fastest."""
        if not self.axes:
            return []
        return list(itertools.product(*(tuple(f"{key}={v}" for v in values) for key, values in self.axes)))

    @property
    def names_runs(self) -> bool:
        """Whether the names of the runs are among what varies."""
        return any(key == RUN_NAME for key, _ in self.axes)

    def spec(self) -> str:
        """As sbatch's --array takes it: "0-5%2"."""
        return f"0-{len(self.tasks) - 1}" + ("" if self.at_once is None else f"%{self.at_once}")


def read_sweep(words: Sequence[str]) -> Sweep:
    """What `--array` is given: `key=value,value` for each setting, and `%N`."""
    axes: dict[str, tuple[str, ...]] = {}
    at_once, mistakes, count = None, list[str](), 1
    for word in words:
        key, equals, text = word.partition("=")
        values = split_values(text)
        if re.fullmatch("%[1-9][0-9]{0,5}", word):
            at_once = int(word[1:])
        elif not equals or key_parts(key) is None:
            mistakes.append(f"--array: {display(word)} is neither key=value,value nor a limit such as %2")
        elif key in axes:
            mistakes.append(f"--array: {display(key)} is there twice; put its values into one list")
        elif "" in values:
            mistakes.append(f"--array: a value of {display(word)} is missing")
        elif len(set(values)) < len(values):
            mistakes.append(f"--array: a value of {display(word)} is there twice")
        else:
            axes[key] = tuple(values)
            count *= len(values)
    if words and not axes and not mistakes:
        mistakes.append("--array: there is only a limit; give the settings that vary, as in run.seed=1,2,3")
    if count > MOST_TASKS:
        mistakes.append(f"--array: these are {count:,} tasks, more than {MOST_TASKS:,}; split them up")
        axes = {}
    return Sweep(tuple(axes.items()), at_once, tuple(mistakes))


def split_values(text: str) -> list[str]:
    """The values between commas that are in no brackets and no quotes: "[1,2],3" are two."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (not values[-1] or values[-1][-1] in "[{,: "):
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            values.append("")
            continue
        values[-1] += letter
    return values


def run_names(name: str, sweep: Sweep) -> list[str]:
    """A name for the run of each task: "demo-learning_rate_1e-3-seed_1".

    They do not depend on which other values there are, so that a longer sweep goes on with the runs of a
    shorter one; where that makes no different names of at most 64 characters, tasks are numbered.
    """
    varied = [index for index, (_, values) in enumerate(sweep.axes) if len(values) > 1] or [0]
    names = ["-".join([name, *(_label(task[index]) for index in varied)]) for task in sweep.tasks]
    if len(set(names)) < len(names) or max(map(len, names)) > LONGEST_NAME:
        return [f"{name}-{number}" for number in range(len(names))]
    return names


def _label(override: str) -> str:
    key, _, value = override.partition("=")
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"{key.rpartition('.')[2]}_{value}").strip("_")
