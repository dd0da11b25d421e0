"""The runs that were made, a line each in runs.jsonl, and which of them are still to be made."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.learning_contenders import OURS
from benchmarks.learning_sizes import Size
from llmkit.errors import UserError

Kind = Literal["pace", "tune", "tokens", "seconds"]
KINDS: tuple[Kind, ...] = ("pace", "tune", "tokens", "seconds")
"""pace: what a step costs. tune: the sweep of the rates' factor. tokens, seconds: the runs that count."""
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the sweep, which goes on outwards by factors of two while the best one is at its end."""
LIMITS = (1 / 64, 256.0)
"""The sweep goes no further."""
TUNING_SHARE, TUNING_SEED = 4, 0
"""The sweep has a quarter of the steps, and one seed."""


@dataclass(frozen=True)
class Job:
    """A run to be made. factor: times the recipe's learning rates. steps: that it has."""

    size: str
    contender: str
    kind: Kind
    seed: int
    factor: float
    steps: int

    @property
    def name(self) -> str:
        """Fit for a file's name and for people."""
        return f"{self.size}-{self.contender}-{self.kind}-seed{self.seed}-x{self.factor:g}-{self.steps}"


@dataclass(frozen=True)
class Line:
    """A run that was made.

    recipe: a digest of the contender's settings. bits_per_byte: None where it has diverged, and of kind pace.
    step_seconds: processor seconds of a step. reference: of kind pace, what a step of llmkit cost in the same
    turns, and the digest of its settings.
    """

    job: Job
    recipe: str
    bits_per_byte: float | None
    step_seconds: float
    parameters: int
    reference: tuple[float, str] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


class Store:
    """A folder of results, to which several processes may add at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "runs.jsonl"
        (folder / "locks").mkdir(parents=True, exist_ok=True)

    def lines(self) -> list[Line]:
        """All that was made. Raises UserError for a line that is none; one that was cut off is left out."""
        found: dict[str, list[Line]] = {}
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for number, row in enumerate(text.splitlines(keepends=True), start=1):
            if not row.endswith("\n"):
                break
            try:
                entry = json.loads(row)
                if "begin_anew" in entry:
                    found.pop(entry["begin_anew"], None)
                else:
                    line = Line(**{**entry, "job": Job(**entry["job"])})
                    found.setdefault(f"{line.job.size}/{line.job.contender}", []).append(line)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{self.path}:{number}: not a line of this benchmark ({error})") from None
        return [line for each in found.values() for line in each]

    def add(self, line: Line) -> None:
        """Appends a line."""
        self._append(asdict(line))

    def begin_anew(self, size: str, contender: str) -> None:
        """What was made of that contender at that size counts no more."""
        self._append({"begin_anew": f"{size}/{contender}"})

    def check(self, size: str, contender: str, recipe: Mapping[str, Any]) -> None:
        """Raises UserError where results of other settings are stored; the settings are kept beside them."""
        path = self.folder / "settings" / f"{size}-{contender}-{digest(recipe)}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
        for line in self.lines():
            if (line.job.size, line.job.contender) == (size, contender) and line.recipe != digest(recipe):
                old = self.folder / "settings" / f"{size}-{contender}-{line.recipe}.json"
                before = json.loads(old.read_text(encoding="utf-8")) if old.exists() else {}
                raise UserError(
                    f"{self.path}: the runs of {size}/{contender} were made with other settings "
                    f"({_difference(before, recipe)}); name another --folder, or leave those runs out with "
                    f"--begin-anew {size}/{contender}"
                )

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Whether this process may make the run: no other one is at it. A kill gives the claim back, too."""
        with (self.folder / "locks" / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.tell() and not _ends_with_newline(self.path):
                file.truncate(self.path.read_bytes().rfind(b"\n") + 1)  # cut off by a kill
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def digest(recipe: Mapping[str, Any]) -> str:
    """Names the settings of a contender."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Findings:
    """What the lines of one size say.

    recipes: digest of each contender's settings; lines of others do not count.
    """

    size: Size
    recipes: Mapping[str, str]
    all_lines: Sequence[Line]

    def of(self, contender: str, kind: Kind) -> list[Line]:
        """The lines of a contender."""
        wanted = (self.size.name, contender, kind)
        return [
            line for line in self.all_lines
            if (line.job.size, line.job.contender, line.job.kind) == wanted
            and line.recipe == self.recipes[contender]
        ]  # fmt: skip

    def pace(self, contender: str) -> float | None:
        """Processor seconds of a step, as a multiple of llmkit's in the same turns; None where not known."""
        if contender == OURS:
            return 1.0
        for line in self.of(contender, "pace"):
            if line.reference is not None and line.reference[1] == self.recipes.get(OURS):
                return line.step_seconds / line.reference[0]
        return None

    def sweep(self, contender: str) -> dict[float, float]:
        """Factor of the rates -> bits per byte, infinite where it diverged; by factor."""
        steps = tuning_steps(self.size)
        lines = [line for line in self.of(contender, "tune") if line.job.steps == steps]
        bits = {line.job.factor: line.bits_per_byte for line in lines}
        return {factor: math.inf if bits[factor] is None else bits[factor] for factor in sorted(bits)}

    def factor(self, contender: str) -> float | None:
        """The best factor; None while the sweep is not done."""
        sweep = self.sweep(contender)
        return None if _next_factors(sweep) else min(sweep, key=lambda each: sweep[each])

    def steps_at_equal_seconds(self, contender: str) -> int | None:
        """Steps that take as many processor seconds as llmkit's run at equal tokens; None where not known."""
        pace = self.pace(contender)
        return None if pace is None else max(1, round(self.size.steps / pace))

    def counted(self, contender: str, kind: Kind) -> list[Line]:
        """The runs of a table, of the best factor and the kind's steps; llmkit's are the same twice."""
        steps = self.size.steps if kind == "tokens" else self.steps_at_equal_seconds(contender)
        kind = "tokens" if contender == OURS else kind
        factor = self.factor(contender)
        return [x for x in self.of(contender, kind) if (x.job.factor, x.job.steps) == (factor, steps)]

    def jobs(self, contenders: Sequence[str], seeds: Sequence[int], kinds: Sequence[Kind]) -> list[Job]:
        """The runs that can be made now and were not yet, the next one first; not those of kind pace."""
        jobs = []
        for name in contenders:
            for factor in _next_factors(self.sweep(name)):
                jobs.append(Job(self.size.name, name, "tune", TUNING_SEED, factor, tuning_steps(self.size)))
        for kind in ("tokens", "seconds"):
            for seed in seeds:
                for name in contenders:
                    factor, steps = self.factor(name), self.steps_at_equal_seconds(name)
                    if kind == "tokens":
                        steps = self.size.steps
                    elif name == OURS:
                        continue
                    done = {line.job.seed for line in self.counted(name, kind)}
                    if factor is not None and steps is not None and seed not in done:
                        jobs.append(Job(self.size.name, name, kind, seed, factor, steps))
        return [job for job in jobs if job.kind in kinds]


def tuning_steps(size: Size) -> int:
    """Steps of a run of the sweep."""
    return max(1, size.steps // TUNING_SHARE)


def _next_factors(sweep: Mapping[float, float]) -> list[float]:
    """The factors that the sweep still lacks; none when the best one lies between two others."""
    if missing := [factor for factor in FACTORS if factor not in sweep]:
        return missing
    best = min(sweep, key=lambda each: sweep[each])
    further = [2.0 * best] if best == max(sweep) else [best / 2.0] if best == min(sweep) else []
    return [factor for factor in further if LIMITS[0] <= factor <= LIMITS[1]]


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that differs."""
    old, new = (dict(_flat(each)) for each in (before, now))
    for key in [*new, *old]:
        if old.get(key) != new.get(key):
            return f"{key}: {old.get(key)!r}, now {new.get(key)!r}"
    return "not recorded"


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _ends_with_newline(path: Path) -> bool:
    return path.read_bytes()[-1:] == b"\n"
