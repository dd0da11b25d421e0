"""The trainer's side of the mirror to Weights & Biases.

wandb runs in a process of its own (`wandb_sidecar`), which follows metrics.jsonl: no error, stall or
crash of wandb, its network or its server can reach the training process. The trainer starts that
process, never waits for it, and at the end gives it a limited time to hand over the last rows.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import llmkit
from llmkit.files import write_atomic, write_json
from llmkit.monitor.jsonlines import plain
from llmkit.monitor.wandb_mode import has_home, resolve_mode, server_url
from llmkit.monitor.wandb_names import RUN_ID, resolve_names
from llmkit.stopping import signals_blocked

if TYPE_CHECKING:
    from llmkit.config.schema import Wandb


class Timeouts(NamedTuple):
    """Seconds for each thing that may hang. From the trainer's end: finish < abandon < kill."""

    probe: float = 3.0
    """The server's answer to a first request."""
    init: float = 20.0
    """The server's part in the start of the W&B run."""
    finish: float = 10.0
    """Handing over the last rows to the server: what a server that is gone costs a run at its end."""
    abandon: float = 60.0
    """The mirror process ends itself. A busy machine may need this long to load wandb for a short run."""
    kill: float = 65.0
    """The trainer kills the mirror process: what W&B can cost a run at its end, at the most."""


class Mirror:
    """The mirror process of a run, or None of it where W&B is disabled.

    message: for the console, a line about where the metrics go and one for each variable that was passed
    over; empty where W&B is disabled.
    """

    def __init__(
        self,
        run_dir: Path,
        message: str,
        process: subprocess.Popen[bytes] | None = None,
        kill_after: float = 0.0,
    ) -> None:
        self.message = message
        self._run_dir = run_dir
        self._process = process
        self._kill_after = kill_after

    @classmethod
    def start(
        cls,
        run_dir: Path,
        settings: Wandb,
        config: Mapping[str, Any],
        timeouts: Timeouts | None = None,
        environment: Mapping[str, str] | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> Mirror:
        """Starts mirroring `run_dir`/metrics.jsonl, and returns at once.

        Call it on one rank, after metrics.jsonl was cut back and before its next row is appended.
        config: the resolved settings as JSON values; they appear on the W&B page, so no secrets.
        origins: where each of `settings` was given, as in Loaded.
        Raises UserError for a wrong WANDB_MODE, WANDB_PROJECT or WANDB_RUN_ID; any other failure leaves the
        run without a mirror and says so in `message`.
        """
        timeouts = timeouts or Timeouts()
        environment = os.environ if environment is None else environment
        mode, reason = resolve_mode(settings.mode, environment)
        if mode == "disabled":
            return cls(run_dir, f"W&B: off, {reason}" if reason else "")
        names = resolve_names(settings, origins or {}, environment)
        session = {
            "mode": mode,
            "server": server_url(environment),
            "project": names.project,
            "entity": names.entity,
            "name": names.name or run_dir.resolve().name,
            "timeouts": timeouts._asdict(),
            "config": plain(config),
        }
        try:
            original = _leave_original(run_dir)
            _write_session(run_dir, session, names.run_id)
            process = _start_process(run_dir, environment)
        except OSError as error:
            return cls(run_dir, f"W&B: off, its process could not be started ({error})")
        if mode == "online":
            message = f"W&B: online, project {names.project} on {session['server']}"
        else:
            because = f" ({reason})" if reason else ""
            folders = f"{shlex.quote(str(run_dir / 'wandb'))}/offline-run-*-{session['run_id']}"
            message = f"W&B: offline{because}; upload later with: wandb sync {folders}"
        notes = list(names.notes)
        if original is not None:
            notes.append(f"this folder is a copy of {original}: it is a run of its own, {session['run_id']}")
        if names.run_id not in (None, session["run_id"]):
            notes.append(
                f"WANDB_RUN_ID={names.run_id} is passed over: the run has the id {session['run_id']}"
            )
        return cls(run_dir, "\nW&B: ".join([message, *notes]), process, timeouts.kill)

    def finish(self, exit_code: int = 0) -> str | None:
        """Lets the mirror hand over the last rows, at most `timeouts.kill` seconds, then kills it.

        exit_code: of the trainer; 75 (stopped early) marks the W&B run as preempted, not as crashed.
        Returns one line for the console if not everything reached the server, else None. Never raises
        because of W&B; a second call does nothing.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(b"%d\n" % exit_code)
            process.stdin.flush()
        with suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(self._kill_after)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            process.wait()
            code = -signal.SIGKILL
        return None if code == 0 else self._what_is_missing()

    def _what_is_missing(self) -> str:
        log = self._run_dir / "logs" / "wandb.log"
        folders = sorted(self._run_dir.glob("wandb/*run-*-*"), key=lambda path: path.name.split("run-")[1])
        if not folders:
            return f"W&B: nothing was recorded; why: {log}; metrics.jsonl has every row"
        sync = f"wandb sync --include-online {shlex.quote(str(folders[-1]))}"
        return f"W&B: not everything reached the server; to upload it: {sync} (why: {log})"


def kill_tree(pid: int) -> None:
    """Kills a process and all it started, wandb-core too, which makes a session of its own."""
    for member in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes started by `pid`, directly or not (Linux; none elsewhere)."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def _leave_original(run_dir: Path) -> Path | None:
    """Where this folder is a copy of a run folder that is still there, forgets that one's W&B run.

    Returns the original; None where there is none. Both would else write into the same charts. A folder that
    was moved keeps its W&B run.
    """
    folder = run_dir / "wandb"
    try:
        original = Path(json.loads((folder / "session.json").read_text())["folder"])
        run_ids = [(each / "run_id").read_text() for each in (folder, original / "wandb")]
        if run_dir.samefile(original) or run_ids[0] != run_ids[1]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for name in ("run_id", "session.json", "mirror.json"):  # the new run gets all rows
        (folder / name).unlink(missing_ok=True)
    return original


def _write_session(run_dir: Path, session: dict[str, Any], run_id: str | None) -> None:
    """Writes all that the mirror process needs to know; no secret is among it.

    run_id: for a run that has none yet; None = a new one.
    """
    folder = run_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    path, metrics = folder / "session.json", run_dir / "metrics.jsonl"
    try:
        starts = int(json.loads(path.read_text())["restarts"]) + 1
    except (OSError, ValueError, KeyError, TypeError):
        starts = 0
    session["run_id"] = _run_id(folder / "run_id", run_id)
    session["folder"] = str(run_dir.resolve())
    session["restarts"] = starts
    session["trainer"] = os.getpid()
    # Rows past this offset are new, whatever was mirrored before the file was cut back.
    session["mirrored_at_most"] = metrics.stat().st_size if metrics.exists() else 0
    write_json(path, session)


def _run_id(path: Path, asked: str | None) -> str:
    """The W&B id of the run, made once: with the same id a resumed run goes on in the same charts."""
    with suppress(OSError, UnicodeDecodeError):
        if RUN_ID.fullmatch(known := path.read_text().strip()):
            return known
    new = asked or secrets.token_hex(6)
    with write_atomic(path) as file:
        file.write(f"{new}\n".encode())
    return new


def _start_process(run_dir: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    package_root = str(Path(llmkit.__file__).resolve().parents[1])
    home = {} if has_home(environment) else {"HOME": str(run_dir.resolve() / "wandb")}  # wandb needs one
    paths = [package_root, *filter(None, [environment.get("PYTHONPATH")])]
    with open(run_dir / "logs" / "wandb.log", "ab") as log, signals_blocked():
        return subprocess.Popen(
            # -P: the working directory is nothing to import from; users have a folder wandb/ there.
            [sys.executable, "-P", "-m", "llmkit.monitor.wandb_sidecar", str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, **home, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
