"""The next batch, or an end that all ranks agree on."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.data.loader import Step
from llmkit.errors import SourceDryError
from llmkit.loop.hooks import Log
from llmkit.loop.run import Run


def next_batch(run: Run, log: Log, batches: Iterator[Step]) -> Step:
    """The next batch of this rank.

    Raises SourceDryError, on all ranks and with everything saved, where a source of one of them has run dry:
    what was trained on is not lost, and goes on once there is more to read.
    """
    batch, dry = None, None
    with run.clock.waiting():
        try:
            batch = next(batches)
        except SourceDryError as error:
            dry = error
    if run.loader.may_run_dry and run.mesh.count_over_data(int(dry is not None)):
        run.control.close()
        log.flush(run)
        checkpoint = run.save()
        reasons = run.mesh.gather_texts("" if dry is None else str(dry))
        raise SourceDryError(f"{next(filter(None, reasons))}. Saved {checkpoint}")
    assert batch is not None, dry
    return batch
