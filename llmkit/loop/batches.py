"""The next batch, or an end that all ranks agree on."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.data.loader import Step
from llmkit.data.prefetch import GaveUp
from llmkit.loop.ends import save_and_fail
from llmkit.loop.hooks import Log
from llmkit.loop.run import Run
from llmkit.loop.stop import REASONS, StopRequest

FAILED = len(REASONS)
"""Why a rank has no batch, beside the reasons to stop: its data cannot be read, or a source has run dry."""


def listen(run: Run, stop: StopRequest) -> None:
    """Lets a request to stop end the wait for a batch."""
    run.loader.give_up = stop.wish


def next_batch(run: Run, log: Log, batches: Iterator[Step]) -> Step | None:
    """The next batch of this rank; None, on all ranks, where one was asked to stop while it waited.

    `run.agreed.stop` then says why. Where the data of one rank have failed, its error is raised on all, with
    everything saved: what was trained is not lost. Either way what others got is put back: nothing was
    trained on it. Ranks wait for each other only where one of them has not said before that it has a batch.
    """
    batch, why, error = None, 0, None
    lanes_left = run.loader.lanes_left
    with run.clock.waiting():
        try:
            batch = next(batches)
        except GaveUp as end:
            why = end.why
        except Exception as caught:
            why, error = FAILED, caught
        if run.agreed.unready:
            why, *left = run.control.largest(why, *lanes_left.values())
            if why == 0 and (dry := [index for index, most in zip(lanes_left, left) if most == 0]):
                why, error = FAILED, run.loader.run_dry(dry[0])
        elif error is not None:
            raise error  # the others train on theirs: nothing can be agreed on
    if why and batch is not None:
        run.loader.put_back()
    if why == FAILED:
        save_and_fail(run, log, error)
    if why:
        run.agreed = run.agreed._replace(stop=why)
        return None
    assert batch is not None
    return batch
