"""How a run ends before its last step: saved where that is possible, with the reason on record."""

from __future__ import annotations

from llmkit.loop.hooks import Log
from llmkit.loop.run import Run
from llmkit.loop.stop import StopRequest
from llmkit.monitor.console import Console
from llmkit.monitor.events import EventLog
from llmkit.parallel.agreement import together
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder
from llmkit.stopping import Stopped

STOPPED = 75
"""Exit code of a run that was asked to stop: it is saved, and the same command goes on with it."""


def stop(run: Run, log: Log, request: StopRequest) -> int:
    """Saves, on all ranks, and says why this is not the end; returns the exit code."""
    run.control.close()
    log.flush(run)
    checkpoint, reason = run.save(), request.describe(run.agreed.stop)
    run.events.record("stop", step=run.progress.step, reason=reason)
    with together(run.mesh):
        run.folder.mark_saved()
    run.console.note(f"stopped by {reason}, saved {checkpoint}; the same command goes on from here")
    return STOPPED


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
    with together(mesh):
        folder.mark_saved()
    console.note(
        f"stopped by {stopped} before the first step of this start: nothing is lost; the same command goes on"
    )
    return STOPPED
