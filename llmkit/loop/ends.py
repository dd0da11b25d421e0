"""How a run ends before its last step: saved where that is possible, with the reason on record."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from llmkit.end_file import End, end_of, write_end
from llmkit.errors import RunFault, UserError
from llmkit.loop.finish import time_line
from llmkit.loop.launch import Launch
from llmkit.loop.report import REPORT, write_report
from llmkit.loop.stop import HOOK, REASONS, StopRequest
from llmkit.monitor.console import Console
from llmkit.monitor.events import EventLog
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.roll_call import hosts_behind
from llmkit.run_folder import RunFolder
from llmkit.stopping import STOPPED, Stopped

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


def stop_run(t: Trainer) -> int:
    """Saves, on all ranks, and says why this is not the end; returns the exit code."""
    checkpoint, reason = t.save_last(), t.stop.describe(t.agreed.stop)
    if t.agreed.stop == REASONS.index(HOOK):  # which may be one of another rank
        reason = next(filter(None, t.mesh.all_gather_text(t.stop.hook)), reason)
    state = t.state
    t.record_event("stop", step=state.step, reason=reason, phase_seconds=dict(t.phases.seconds))
    with fail_together(t.mesh):
        t.folder.mark_saved()
        record_end(t, End("stopped", reason))
    of = "" if state.max_steps is None else f" of {state.max_steps}"
    if state.evaluated_step != state.step and (t.evaluation_due or state.finished()):
        of += ", whose evaluation is still to be made"
    t.console.note(
        f"stopped by {reason} after step {state.step}{of}; saved {checkpoint}; "
        "the same command goes on from here",
        important=True,
    )
    if t.mesh.rank == 0:
        t.console.note(f"where the time went: {time_line(t)}")
    if write_report(t):
        t.console.note(f"report: {t.folder.path / REPORT}")
    return STOPPED


def save_and_fail(t: Trainer, error: Exception | None) -> NoReturn:
    """Saves, on all ranks, and raises the error that one or several of them give.

    Between two steps only, when all ranks are there.
    """
    t.control.close()
    t.log.flush()
    saved = ""
    if t.unsaved_steps:
        try:
            saved = f"Saved {t.save()}"
        except RunFault as fault:
            saved = f"NOT SAVED: {fault}"
    try:
        with fail_together(t.mesh):
            if error is not None:
                raise error
    except (UserError, RunFault) as joint:
        message = f"{str(joint).rstrip('.')}. {saved}" if saved else str(joint)
        raise type(joint)(message) from joint
    except Exception:  # of a hook: its message stays as it is
        if saved:
            t.console.note(saved)
        raise
    raise AssertionError("no rank has given an error")


def record_end(t: Trainer, end: End) -> None:
    """Writes $END_FILE, if it is asked for, with the steps of this run.

    On rank 0; of a fault, on the first rank that is left. Raises RunFault where it cannot be written.
    """
    roll_call = t.mesh.roll_call
    if t.mesh.rank == (0 if roll_call is None else roll_call.first):
        step, saved, first = t.state.step, t.saved_step, t.first_step
        write_end(replace(end, step=step, saved_step=saved, first_step=first), t.environment)


def raise_failures(t: Trainer) -> None:
    """Raises, on all ranks, the error of a hook of one of them, if there is one. Where nothing is unsaved."""
    with fail_together(t.mesh):
        if t.hooks.failure is not None:
            raise t.hooks.failure


def record_fault(t: Trainer, error: BaseException) -> BaseException:
    """Puts a fault on record, with what it costs; returns `error`, or what is behind it (see RollCall).

    Between two steps a process alone saves first, unless it ends on purpose; of several, the others may be
    anywhere.
    """
    t.watch.settle()  # what follows may take long, such as the end of the mirror to W&B
    cause = t.mesh.cause_of(error)
    t.saves.settle_after(error)
    unexpected = isinstance(error, Exception) and not isinstance(error, UserError | RunFault)
    if unexpected and t.unsaved_steps and not t.in_step and t.mesh.world_size == 1:
        with suppress(Exception):  # what the user must see is the error itself
            t.console.note(f"saved {t.save()}")
    reason = f"{type(cause).__name__}: {cause}"
    lost = t.unsaved_steps
    events, roll_call = t.events, t.mesh.roll_call
    if roll_call is not None and 0 in roll_call.gone and t.mesh.rank == roll_call.first:
        # Rank 0, whose task it was, has gone.
        events = EventLog(t.folder.path / "events.jsonl", t.folder.claim)
    with suppress(RunFault):  # what the user must see is the error itself
        record_end(t, replace(end_of(cause), hosts=hosts_behind(cause)))
    events.record(
        "fault",
        step=t.state.step,
        reason=reason,
        saved_step=t.saved_step,
        lost_steps=lost,
        account=t.ledger.now().to_json(),
        spent=t.spending.used(),
    )
    t.console.log(reason)
    if lost:
        saved = t.saved_step
        since = "the start of the run" if saved is None else f"the checkpoint of step {saved}"
        t.console.note(
            f"ended by a fault after step {t.state.step}: {lost} steps are lost, all since {since}; "
            "the same command does them again",
            important=True,
        )
    return cause


def stop_before_start(launch: Launch, console: Console, stopped: Stopped) -> int:
    """The end of a start that has waited in vain for the run folder, on all ranks; returns the exit code."""
    if launch.mesh.rank == 0:
        write_end(End("stopped", str(stopped)), launch.environment)
    console.note(f"stopped by {stopped} before it had the run folder: nothing was changed", important=True)
    return STOPPED


def stop_at_start(
    launch: Launch, folder: RunFolder, console: Console, request: StopRequest, stopped: Stopped
) -> int:
    """The end of a start that has trained nothing yet, on all ranks; returns the exit code.

    What it has prepared is kept: parts of the data, a trained tokenizer.
    """
    request.hold()
    mesh = launch.mesh
    if mesh.rank == 0:
        events = EventLog(folder.path / "events.jsonl", folder.claim)
        events.record("stop", reason=str(stopped), before="the first step of this start")
        events.close()
    with fail_together(mesh):
        folder.mark_saved()
        if mesh.rank == 0:
            write_end(End("stopped", str(stopped)), launch.environment)
    console.note(
        f"stopped by {stopped} before the first step of this start: nothing is lost; "
        "the same command goes on",
        important=True,
    )
    return STOPPED
