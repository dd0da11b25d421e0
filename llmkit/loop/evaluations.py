"""The evaluations of a run: when they are due, and what is done with what they find. All ranks call these."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmkit.data.eval_loader import EvalLoader
from llmkit.data.prefetch import Interrupted
from llmkit.loop.best import keep_if_best, name_best
from llmkit.loop.evaluate import evaluate, evaluation_row
from llmkit.loop.sample_table import write_samples
from llmkit.loop.stop import LATE
from llmkit.loop.tasks import evaluate_tasks, leave_out, tasks_due, tasks_on_record, tasks_stop_code
from llmkit.parallel.agreement import on_rank_zero

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


def evaluate_if_due(t: Trainer) -> None:
    """Evaluates, if that is due or asked for at this step; not the evaluation at the end."""
    if t.state.finished():
        return
    if (t.evaluation_due or t.agreed.evaluate) and not evaluate_now(t):
        return
    if tasks_due(t.config, t.state.step, at_end=False):
        evaluate_tasks_now(t)


def may_end_here(t: Trainer) -> bool:
    """Whether this may be the last step: by the number of steps, or by what its evaluation will say."""
    patience, without = t.config.evaluate.early_stopping, t.state.evaluations_without_gain
    evaluates = t.heldout is not None and (t.evaluation_due or t.agreed.evaluate)
    last_chance = evaluates and patience is not None and without + 1 >= patience
    return last_chance or t.state.finished()


def evaluate_now(t: Trainer) -> bool:
    """Evaluates at this step, unless that was done or nothing is held out.

    The checkpoint of this step lacks it: a resumed run takes it from metrics.jsonl, or makes it.
    False where it was given up because of a request to stop: nothing of it is on record, and
    `t.agreed.stop` says why on all ranks.
    """
    state, heldout = t.state, t.heldout
    if heldout is None or state.evaluated_step == state.step:
        return True
    t.log.flush()
    try:
        with t.phases.span("evaluate"):
            found = evaluate(t.engine, heldout, t.mesh, t.control, t.stop_code, state.step, t.ranges)
            averaged = _loss_of_average(t, heldout)
            write_samples(t)  # before the row, by which a start knows that nothing is missing
    except Interrupted as end:
        t.agreed = t.agreed._replace(stop=end.why)
        return False
    state.record_evaluation(found.loss, t.config.evaluate.early_stopping)
    t.write_row({**evaluation_row(found, of_pairs=t.data.has_pairs), **averaged})
    if state.stopped_early:
        t.events.record("early_stopping", step=state.step, best=state.best_eval_loss)
        t.console.note(f"stopping early: {state.evaluations_without_gain} evaluations without a lower loss")
    with t.phases.span("evaluate"):
        t.hooks.call("after_evaluate", t, found)
    keep_if_best(t)
    return True


def take_over_record(t: Trainer) -> None:
    """Takes over what was found of this very step after its checkpoint was saved, where it is on record: the
    held-out loss, and that it is evaluated by tasks; names the best checkpoint. Collective.

    For a run that stands at a checkpoint again, by a start or a rollback; rank 0 has the record. A start may
    have ended between a save and the name of the best checkpoint.
    """
    state = t.state
    if state.evaluated_step != state.step:
        row = json.loads(on_rank_zero(t.mesh, lambda: json.dumps(t.metrics.evaluation_at(state.step))))
        if row is not None:
            loss = row["eval_loss"]
            patience = t.config.evaluate.early_stopping
            state.record_evaluation(math.nan if loss is None else loss, patience)
    if not t.has_nothing_to_do:
        name_best(t)
    if tasks_on_record(t.metrics, state.step, t.mesh):
        state.tasks_step = state.step


def _loss_of_average(t: Trainer, heldout: EvalLoader) -> dict[str, float]:
    """The column of the moving average's held-out loss, where that is asked for. Raises Interrupted."""
    ema = t.config.train.ema
    if not (ema.on and ema.evaluate):
        return {}
    with _average_in_use(t):
        found = evaluate(t.engine, heldout, t.mesh, t.control, t.stop_code, t.state.step, t.ranges)
    return {"eval_ema_loss": found.loss}


@contextmanager
def _average_in_use(t: Trainer) -> Iterator[None]:
    """In here the weights are their moving average. Collective."""
    t.engine.exchange_ema()
    try:
        yield
    except Exception as error:
        # Of another error other ranks may not know: they could not take part, and nothing is saved then.
        if isinstance(error, Interrupted) or t.mesh.world_size == 1:
            t.engine.exchange_ema()
        raise
    t.engine.exchange_ema()


def evaluate_tasks_now(t: Trainer) -> bool:
    """Evaluates by tasks at this step, unless that was done or none is asked for; as `evaluate_now`."""
    state = t.state
    if not tasks_due(t.config, state.step, at_end=True) or state.tasks_step == state.step:
        return True
    t.log.flush()
    began = t.clock()
    try:
        with t.phases.span("evaluate"):
            found = evaluate_tasks(t, lambda: tasks_stop_code(t))
    except Interrupted as end:
        if end.why == LATE and state.finished():
            leave_out(t)
            return True
        t.agreed = t.agreed._replace(stop=end.why)
        return False
    state.tasks_step, t.tasks_seconds = state.step, t.clock() - began
    if found is not None:
        t.write_row({"step": state.step, **found})
    return True
