"""Held-out loss while training, given up where the run is asked to stop."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from llmkit.batch import Batch
from llmkit.config.schema import Config
from llmkit.data.prefetch import GaveUp
from llmkit.engine.base import StepResult
from llmkit.loop.control import Poll
from llmkit.loop.hooks import Log
from llmkit.loop.progress import Progress
from llmkit.loop.run import Run
from llmkit.loop.stop import StopRequest
from llmkit.monitor.flops import bits_per_byte
from llmkit.monitor.metrics import MetricsFile
from llmkit.parallel.agreement import on_rank_zero
from llmkit.parallel.mesh import Mesh


class Evaluate:
    """Held-out loss every `evaluate.every_steps` and at the end.

    An evaluation comes after the save of its step: it may take long, and what was trained is safe
    meanwhile. So a checkpoint may lack the evaluation of its own step: a resumed run takes it from
    metrics.jsonl, or makes it.
    """

    def __init__(self, log: Log, stop: StopRequest) -> None:
        self.log, self.stop = log, stop

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        self.catch_up(run)

    def catch_up(self, run: Run) -> None:
        """Evaluates, if an evaluation is due at this step and was not made; not the one at the end."""
        if run.evaluation_due and not run.progress.finished():
            self.evaluate(run)

    def evaluate(self, run: Run) -> bool:
        """Evaluates at this step, unless that was done or nothing is held out.

        False where it was given up because of a request to stop: nothing of it is on record, and
        `run.agreed.stop` says why on all ranks.
        """
        if run.heldout is None or run.progress.evaluated_step == run.progress.step:
            return True
        self.log.flush(run)
        try:
            with run.clock.paused():
                rows = run.engine.evaluate(self._batches(run))
                total = float(run.mesh["data", "context"].sum(rows.nats.double().sum()))
                nats = float(run.mesh.broadcast_text(repr(total)))  # the very same: it may end the run
        except GaveUp as end:
            run.agreed = run.agreed._replace(stop=end.why)
            return False
        loss, bits = nats / run.heldout.targets, bits_per_byte(nats, run.heldout.text_bytes)
        run.progress.record_evaluation(loss, run.config.evaluate.early_stopping)
        run.metrics.append({"step": run.progress.step, "eval_loss": loss, "eval_bits_per_byte": bits})
        run.console.evaluation(run.progress.step, loss, bits)
        if run.progress.stopped_early:
            run.events.record("early_stopping", step=run.progress.step, best=run.progress.best_eval_loss)
            run.console.note(
                f"stopping early: {run.progress.evaluations_without_gain} evaluations without a lower loss"
            )
        return True

    def _batches(self, run: Run) -> Iterator[Batch]:
        """The held-out batches on the device; raises GaveUp, on all ranks before the same one, on a stop."""
        assert run.heldout is not None
        poll = Poll(run.control, self.stop.wish)
        for batch in run.heldout:
            if why := poll():
                raise GaveUp(why)
            yield batch.to(run.device)


def take_over_evaluation(progress: Progress, config: Config, metrics: MetricsFile, mesh: Mesh) -> None:
    """Counts the evaluation of this very step that was made after its checkpoint, where it is on record.

    All ranks call it; rank 0 has the record.
    """
    if progress.evaluated_step == progress.step:
        return
    text = on_rank_zero(mesh, lambda: json.dumps(metrics.evaluation_at(progress.step)))
    row = json.loads(text)
    if row is not None:
        loss = row["eval_loss"]
        progress.record_evaluation(math.nan if loss is None else loss, config.evaluate.early_stopping)
