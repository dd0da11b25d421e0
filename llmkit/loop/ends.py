"""How a run ends before its last step: saved where that is possible, with the reason on record."""

from __future__ import annotations

from contextlib import suppress
from typing import NoReturn

from llmkit.errors import RunFault, UserError
from llmkit.loop.hooks import Log
from llmkit.loop.run import Run
from llmkit.loop.stop import StopRequest
from llmkit.monitor.console import Console
from llmkit.monitor.events import MAX_REASON, EventLog
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder
from llmkit.stopping import Stopped

STOPPED = 75
"""Exit code of a run that was asked to stop: it is saved, and the same command goes on with it."""


def stop_run(run: Run, log: Log, request: StopRequest) -> int:
    """Saves, on all ranks, and says why this is not the end; returns the exit code."""
    run.control.close()
    log.flush(run)
    checkpoint, reason = run.save(), request.describe(run.agreed.stop)
    progress = run.progress
    run.events.record("stop", step=progress.step, reason=reason)
    with fail_together(run.mesh):
        run.folder.mark_saved()
    of = "" if progress.max_steps is None else f" of {progress.max_steps}"
    if progress.evaluated_step != progress.step and (run.evaluation_due or progress.finished()):
        of += ", whose evaluation is still to be made"
    run.console.note(
        f"stopped by {reason} after step {progress.step}{of}; saved {checkpoint}; "
        "the same command goes on from here"
    )
    return STOPPED


def save_and_fail(run: Run, log: Log, error: Exception | None) -> NoReturn:
    """Saves, on all ranks, and raises the error that one or several of them give.

    Between two steps only, when all ranks are there.
    """
    run.control.close()
    log.flush(run)
    saved = ""
    if run.unsaved_steps:
        try:
            saved = f"Saved {run.save()}"
        except RunFault as fault:
            saved = f"NOT SAVED: {fault}"
        run.console.note(saved)
    try:
        with fail_together(run.mesh):
            if error is not None:
                raise error
    except (UserError, RunFault) as joint:
        message = f"{str(joint).rstrip('.')}. {saved}" if saved else str(joint)
        raise type(joint)(message) from joint
    raise AssertionError("no rank has given an error")


def record_fault(run: Run, log: Log, error: BaseException) -> BaseException:
    """Puts a fault on record, with what it costs; returns `error`, or what is behind it (see RollCall).

    Between two steps a process alone saves first, unless it ends on purpose; of several, the others may be
    anywhere.
    """
    cause = run.mesh.cause_of(error)
    unexpected = isinstance(error, Exception) and not isinstance(error, UserError | RunFault)
    if unexpected and run.unsaved_steps and not run.in_step and run.mesh.world_size == 1:
        with suppress(Exception):  # the error itself is what is told
            log.flush(run)
            run.console.note(f"saved {run.save()}")
    reason = f"{type(cause).__name__}: {cause}"
    lost = run.unsaved_steps
    events, roll_call = run.events, run.mesh.roll_call
    if roll_call is not None and 0 in roll_call.gone and run.mesh.rank == roll_call.first:
        events = EventLog(run.folder.path / "events.jsonl")  # rank 0, whose task it was, has gone
    events.record(
        "fault",
        step=run.progress.step,
        reason=reason[:MAX_REASON],
        saved_step=run.saved_step,
        lost_steps=lost,
    )
    run.console.log(reason)
    if lost:
        saved = run.saved_step
        since = "the start of the run" if saved is None else f"the checkpoint of step {saved}"
        run.console.note(
            f"ended by a fault after step {run.progress.step}: {lost} steps are lost, all since {since}; "
            "the same command does them again"
        )
    return cause


def stop_at_start(
    mesh: Mesh, folder: RunFolder, console: Console, request: StopRequest, stopped: Stopped
) -> int:
    """The end of a start that has trained nothing yet, on all ranks; returns the exit code.

    What it has prepared is kept: parts of the data, a trained tokenizer.
    """
    request.hold()
    if mesh.rank == 0:
        events = EventLog(folder.path / "events.jsonl")
        events.record("stop", reason=str(stopped), before="the first step of this start")
        events.close()
    with fail_together(mesh):
        folder.mark_saved()
    console.note(
        f"stopped by {stopped} before the first step of this start: nothing is lost; the same command goes on"
    )
    return STOPPED
