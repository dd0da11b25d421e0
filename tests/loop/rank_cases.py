"""What the ranks of tests of this folder do: runs with a clock that is set, with hooks, with measuring."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from llmkit.api import load
from llmkit.errors import AlreadyReported
from llmkit.kernels import attention_timing
from llmkit.loop.hook import Hook, Request
from llmkit.loop.options import Options
from llmkit.plan import operators
from llmkit.plan.operators import FORMS, Form
from llmkit.train import train


class Clock(Hook):
    """A clock that goes on by some seconds after each step, the same on each rank or not.

    later: a step, and the seconds that those after it take.
    """

    def __init__(self, seconds: float, later: tuple[int, float] | None = None) -> None:
        self.seconds, self.later, self.now = seconds, later, 0.0
        self.end: list[int | None] = []

    def __call__(self) -> float:
        return self.now

    def after_step(self, t: Any, result: Any) -> None:
        if self.later is not None and t.state.step > self.later[0]:
            self.seconds = self.later[1]
        self.now += self.seconds

    def on_end(self, t: Any) -> None:
        self.end = [t.state.step, t.state.max_steps]


class Records(Hook):
    """Numbers of each rank, one of which only the second one has."""

    def after_step(self, t: Any, result: Any) -> None:
        own = torch.tensor(float(t.mesh.rank + t.state.step))
        for rule in ("mean", "sum", "max", "min", "last"):
            t.record(f"x/{rule}", own, reduce=rule)
        if t.mesh.rank == 1:
            t.record("of one rank", 5.0)


class Stops(Hook):
    """The second rank asks for a stop after step 4."""

    def request(self, t: Any) -> Request | None:
        return Request(stop="enough") if t.mesh.rank == 1 and t.state.step == 4 else None


class Ends(Hook):
    """The second rank asks for an end after step 30, once."""

    def request(self, t: Any) -> Request | None:
        return Request(max_steps=30) if t.mesh.rank == 1 and t.state.step == 14 else None


class Fails(Hook):
    """The second rank fails after step 4."""

    def after_step(self, t: Any, result: Any) -> None:
        if t.mesh.rank == 1 and t.state.step == 4:
            raise ZeroDivisionError("of this rank alone")


class Late(Hook):
    """The second rank is late at every step, by several times what a step takes here."""

    def __init__(self) -> None:
        self.since: float | None = None

    def request(self, t: Any) -> Request | None:
        if t.mesh.rank == 1:
            took = 0.0 if self.since is None else time.monotonic() - self.since
            time.sleep(max(0.5, 4.0 * took))
            self.since = time.monotonic()
        return None


HOOKS = {"ends": Ends, "late": Late, "records": Records, "stops": Stops, "fails": Fails}


def runs(folder: str, ports: list[int], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run for each case, in a world of its own; what came out of it on this rank.

    A case: its name, overrides, hook, and `seconds` that a step takes by the clock of each rank; `later`, as
    in `Clock`; `file`: its configuration, tiny.yaml by default; `remove`: a folder that is deleted before it.
    """
    rank, found = int(os.environ["RANK"]), []
    os.chdir(folder)
    for port, case in zip(ports, cases, strict=True):
        if rank == 0 and "remove" in case:
            shutil.rmtree(case["remove"])
        environment = dict(os.environ, MASTER_PORT=str(port))
        clock, errors = Clock(case["seconds"][rank], case.get("later")), io.StringIO()
        hooks = [HOOKS[case["hook"]](), clock] if case["hook"] else [clock]
        os.environ["MASTER_PORT"] = str(port)
        code: int | str
        with contextlib.redirect_stderr(errors):
            try:
                loaded = load(case.get("file", "tiny.yaml"), [f"run.name={case['name']}", *case["overrides"]])
                code = train(
                    loaded, Options(), started=0.0, environment=environment, hooks=hooks, clock=clock
                )
            except (Exception, AlreadyReported) as error:
                code = f"{type(error).__name__}: {error}"
        found.append({"code": code, "end": clock.end, "now": clock.now, "errors": errors.getvalue()})
    return found


def measurable() -> dict[str, tuple[Form, ...]]:
    """The table of forms, in which the two of attention that any CPU computes are timed."""
    timed = [replace(form, timed=form.name in ("sdpa", "blocks")) for form in FORMS["attention"]]
    return {**FORMS, "attention": tuple(timed)}


def measures_attention(folder: str) -> dict[str, Any]:
    """A run of which each rank would measure something else; what this one did and got."""
    rank, asked, forms = int(os.environ["RANK"]), list[Any](), list[str]()

    def measure(*arguments: Any) -> dict[str, float]:
        asked.append(arguments)
        return {"sdpa": 2.0 - rank, "blocks": 1.0 + rank}

    class Look(Hook):
        def on_end(self, t: Any) -> None:
            forms.append(t.plan.kernels.forms["attention"])

    os.chdir(folder)
    environment = dict(os.environ, XDG_CACHE_HOME=f"{folder}/cache-{rank}")
    with (
        patch.dict(os.environ, environment),
        patch.object(operators, "FORMS", measurable()),
        patch.object(attention_timing, "measured", measure),
    ):
        loaded = load("tiny.yaml", ["run.deterministic=false", "train.max_steps=2"])
        code = train(loaded, Options(), started=0.0, environment=environment, hooks=[Look()])
    return {"code": code, "measured": len(asked), "form": forms[0]}
