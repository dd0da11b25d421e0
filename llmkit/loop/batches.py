"""The next batch, or an end that all ranks agree on."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.data.loader import Step
from llmkit.data.prefetch import GaveUp
from llmkit.errors import SourceDryError
from llmkit.loop.hooks import Log
from llmkit.loop.run import Run
from llmkit.loop.stop import REASONS, StopRequest

DRY = len(REASONS)
"""Why a rank has no batch, beside the reasons to stop: a source of it has run dry."""


def listen(run: Run, stop: StopRequest) -> None:
    """Lets a request to stop end the wait for a batch, where no other rank waits for this one in training."""
    if run.mesh.world_size == 1 or run.loader.may_lack_a_step:
        run.loader.give_up = stop.wish


def next_batch(run: Run, log: Log, batches: Iterator[Step]) -> Step | None:
    """The next batch of this rank; None, on all ranks, where one was asked to stop while it waited.

    `run.agreed.stop` then says why. Raises SourceDryError, on all ranks and with everything saved, where a
    source of one of them has run dry: what was trained on is not lost, and goes on once there is more to
    read. Either way what others got is put back: nothing was trained on it.
    """
    batch, why, told = None, 0, ""
    with run.clock.waiting():
        try:
            batch = next(batches)
        except GaveUp as error:
            why = error.why
        except SourceDryError as error:
            why, told = DRY, str(error)
    if run.loader.may_lack_a_step:
        (why,) = run.control.largest(why)
    if why and batch is not None:
        run.loader.put_back()
    if why == DRY:
        run.control.close()
        log.flush(run)
        checkpoint = run.save()
        reasons = run.mesh.gather_texts(told)
        raise SourceDryError(f"{next(filter(None, reasons))}. Saved {checkpoint}")
    if why:
        run.agreed = run.agreed._replace(stop=why)
        return None
    assert batch is not None
    return batch
