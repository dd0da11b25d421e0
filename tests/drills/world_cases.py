"""What the processes of tests/drills/test_world.py do: the command line, with a mistake in it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from pathlib import Path
from typing import Any

from llmkit.cli import main
from llmkit.parallel import agreement
from tests.limits import LONGER


def mistakes(folder: str, ports: list[int], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs `llmkit train` for each case, in a world of its own; what came out of it on this rank.

    A case: overrides of all ranks, more environment, and of single ranks, by their number, overrides and
    environment of their own, configuration files and working folders.
    """
    agreement.PATIENCE = agreement.LINGER = LONGER
    rank, found = os.environ["RANK"], []
    for port, case in zip(ports, cases, strict=True):
        os.chdir(case.get("folders", {}).get(rank, folder))
        environment = {**os.environ, "MASTER_PORT": str(port), **case.get("environment", {})}
        environment |= case.get("own_environment", {}).get(rank, {})
        config = case.get("configs", {}).get(rank, "tiny.yaml")
        overrides = [*case.get("overrides", []), *case.get("own", {}).get(rank, [])]
        errors, before = io.StringIO(), dict(os.environ)
        os.environ.update(environment)
        with contextlib.redirect_stderr(errors):
            code = main(["train", config, f"run.name={case['name']}", *overrides])
        os.environ.clear()
        os.environ.update(before)
        found.append({"code": code, "errors": errors.getvalue()})
    return found


def dies_while_preparing(folder: str) -> dict[str, Any]:
    """The second rank is killed while it reads the data; what the first one makes of it."""
    import llmkit.loop.prepare

    agreement.PATIENCE = LONGER
    os.chdir(folder)
    if os.environ["RANK"] == "1":
        llmkit.loop.prepare.prepare = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = main(["train", "tiny.yaml", "run.deterministic=false"])
    log = Path("runs/tiny/logs/rank-00000.log").read_text()
    return {"code": code, "errors": errors.getvalue(), "log": log}
