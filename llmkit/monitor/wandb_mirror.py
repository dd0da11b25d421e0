"""The trainer's side of the mirror to Weights & Biases.

wandb runs in a process of its own (`wandb_sidecar`), which follows the files of the record: no error, stall
or crash of wandb, its network or its server can reach the training process. The trainer starts that process,
never waits for it, and at the end gives it a limited time to hand over the last rows.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmkit
from llmkit.monitor.wandb_mode import has_home, resolve_mode
from llmkit.monitor.wandb_names import resolve_names
from llmkit.monitor.wandb_session import Timeouts, begin_session, wandb_environment
from llmkit.proc import kill_tree
from llmkit.stopping import signals_blocked

if TYPE_CHECKING:
    from llmkit.config.monitor_section import Wandb


class Mirror:
    """The mirror process of a run, or None of it where W&B is disabled.

    message: for the console, a line about where the metrics go and one for each variable that was passed
    over; empty where W&B is disabled. exit_code: of the training process, for `finish`; 75 (stopped early)
    marks the W&B run as preempted, not as crashed.
    """

    def __init__(
        self,
        run_dir: Path,
        message: str,
        process: subprocess.Popen[bytes] | None = None,
        kill_after: float = 0.0,
    ) -> None:
        self.message = message
        self.exit_code = 1
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
        """Starts mirroring the record in `run_dir`, and returns at once.

        Call it on one rank, after the record was cut back and before its next row is appended.
        config: the resolved settings as JSON values; they appear on the W&B page, without secrets.
        origins: where each of `settings` was given, as in Loaded.
        Raises UserError for a value of a W&B variable that W&B does not take; any other failure leaves the
        run without a mirror and says so in `message`.
        """
        timeouts = timeouts or Timeouts()
        environment = os.environ if environment is None else environment
        mode, reason = resolve_mode(settings.mode, environment)
        if mode == "disabled":
            return cls(run_dir, f"W&B: off, {reason}" if reason else "")
        names = resolve_names(settings, origins or {}, environment)
        try:
            session, copy = begin_session(run_dir, mode, names, settings, config, timeouts, environment)
            process = start_process(
                "llmkit.monitor.wandb_sidecar", run_dir, wandb_environment(session, environment)
            )
        except OSError as error:
            return cls(run_dir, f"W&B: off, its process could not be started ({error})")
        if mode == "online":
            message = f"W&B: online, project {names.project} on {session['server']}"
        else:
            because = f" ({reason})" if reason else ""
            message = f"W&B: offline{because}; upload later with: {sync_command(run_dir)}"
        notes = list(names.remarks)
        if copy is not None:
            notes.append(
                f"this folder is a copy of {copy.original}: it is a run of its own, {session['run_id']}"
            )
        if names.run_id not in (None, session["run_id"]):
            notes.append(
                f"WANDB_RUN_ID={names.run_id} is passed over: the run has the id {session['run_id']}"
            )
        return cls(run_dir, "\nW&B: ".join([message, *notes]), process, timeouts.kill)

    def finish(self) -> str | None:
        """Lets the mirror hand over the last rows, at most `timeouts.kill` seconds, then kills it.

        Returns one line for the console if not everything is where it belongs, else None. Never raises
        because of W&B; a second call does nothing.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(b"%d\n" % self.exit_code)
            process.stdin.flush()
        with suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(self._kill_after)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            process.wait()
            code = -signal.SIGKILL
        if code == 0:
            return None
        log = self._run_dir / "logs" / "wandb.log"
        return (
            f"W&B: not everything has got there; nothing is lost, the run's files have it all. "
            f"To upload it: {sync_command(self._run_dir)} (why: {log})"
        )


def sync_command(run_dir: Path) -> str:
    """What sends to the server what it has not."""
    return f"llmkit sync {shlex.quote(str(run_dir))}"


def start_process(
    module: str, run_dir: Path, environment: Mapping[str, str], stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """A process that may import wandb, with logs/wandb.log for what it says. Raises OSError.

    environment: of `wandb_environment`. stdout: as for Popen; None = the log too.
    """
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    package_root = str(Path(llmkit.__file__).resolve().parents[1])
    home = {} if has_home(environment) else {"HOME": str(run_dir.resolve() / "wandb")}  # wandb needs one
    paths = [package_root, *filter(None, [environment.get("PYTHONPATH")])]
    with open(run_dir / "logs" / "wandb.log", "ab") as log, signals_blocked():
        return subprocess.Popen(
            # -P: the working directory is nothing to import from; users have a folder wandb/ there.
            [sys.executable, "-P", "-m", module, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=log if stdout is None else stdout,
            stderr=log,
            env={**environment, **home, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
