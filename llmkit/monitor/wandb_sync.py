"""`llmkit sync`: sends to Weights & Biases what it has not of runs that have ended, once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmkit.command_line import to_stderr
from llmkit.errors import RunFault, UserError
from llmkit.monitor.jsonlines import parse
from llmkit.monitor.wandb_finish import is_complete
from llmkit.monitor.wandb_journal import FILES
from llmkit.monitor.wandb_mirror import start_process
from llmkit.monitor.wandb_mode import has_credential, server_url
from llmkit.monitor.wandb_names import resolve_names
from llmkit.monitor.wandb_session import (
    Timeouts,
    begin_session,
    is_fork,
    read_session,
    wandb_environment,
    write_session,
)
from llmkit.proc import kill_tree
from llmkit.run_folder import borrowed

PATIENT = Timeouts(probe=10.0, init=120.0, finish=3600.0, abandon=3600.0, kill=3600.0)
"""Nobody waits for it but who has called it."""

_NEEDED = {"run_id", "project", "settings", "manifest", "first_news"}


def sync_command(folders: list[Path], environment: Mapping[str, str]) -> int:
    """Sends what is missing of each run, and says what that was; returns the exit code.

    Raises UserError for a folder that holds no run, or one that is still training, and where no key is found;
    RunFault where the server is not there or does not take everything. The other runs are sent all the same.
    """
    if not has_credential(environment):
        raise UserError(
            "sync: no API key of Weights & Biases is found: set WANDB_API_KEY, or call `wandb login`"
        )
    errors: list[UserError | RunFault] = []
    for folder in folders:
        try:
            print(f"{folder}: {_sync_alone(folder, environment)}", flush=True)
        except (UserError, RunFault) as error:
            errors.append(error)
    for failed in errors[:-1]:
        to_stderr(f"llmkit: {failed}")
    if errors:
        raise errors[-1]
    return 0


def _sync_alone(run_dir: Path, environment: Mapping[str, str]) -> str:
    """`_sync` of a run that nobody trains, nor begins to train meanwhile."""
    if not (run_dir / FILES["m"]).is_file():
        raise UserError(f"sync: {run_dir} holds no run: there is no {FILES['m']} in it")
    advice = "; call this when it has ended, or for a copy of the folder"
    with borrowed(run_dir, "sync", advice=advice, note=to_stderr):
        return _sync(run_dir, environment)


def _sync(run_dir: Path, environment: Mapping[str, str]) -> str:
    """Sends what is missing of a run; returns what that was, in words."""
    session = _session(run_dir, environment)
    session |= {"mode": "online", "server": server_url(environment)}
    session |= {"timeouts": PATIENT._asdict(), "trainer": os.getpid()}
    page = f"run {session['run_id']} in project {session['project']} on {session['server']}"
    if is_complete(run_dir, session):
        return f"nothing is missing in {page}"
    write_session(run_dir, session)
    process = start_process(
        "llmkit.monitor.wandb_catch_up", run_dir, wandb_environment(session, environment),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, _ = process.communicate()
    except BaseException:  # as on Ctrl-C
        kill_tree(process.pid)
        raise
    result = parse(output.splitlines()[-1]) if output.strip() else None
    if result is None or not result["done"]:
        said = "; ".join(result["said"]) if result else f"see {run_dir / 'logs' / 'wandb.log'}"
        raise RunFault(f"sync: {run_dir}: not everything has got there: {said}; call it again")
    given = result["given"]
    parts = [f"{given[FILES['m']]} rows", f"{given[FILES['a']]} items of {FILES['a']}"]
    if given[FILES["e"]]:
        parts.append("the events")
    return f"sent {', '.join(parts)} to {page}" + "".join(f"; {line}" for line in result["said"])


def _session(run_dir: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """That of the newest start; a new one for a run, or a copy of one, that was trained without W&B."""
    with suppress(OSError, ValueError, AttributeError):
        session = read_session(run_dir)
        if session.keys() >= _NEEDED and not is_fork(run_dir):  # versions until 2026-11-29 kept less
            return session
    from llmkit.config.load import load

    loaded = load(str(run_dir / "config.yaml"), [])
    wandb = loaded.config.monitor.wandb
    names = resolve_names(wandb, loaded.origins, environment)
    try:
        begun, _ = begin_session(
            run_dir, "online", names, wandb, loaded.config.model_dump(mode="json"), PATIENT, environment
        )
    except OSError as error:
        raise UserError(f"sync: nothing can be written in {run_dir}: {error.strerror}") from error
    return begun
