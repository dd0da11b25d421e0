"""What happens after a step: choosing the number of steps, logging, evaluating, saving."""

from __future__ import annotations

import time
from typing import Any

import torch

from llmkit.engine.base import StepResult
from llmkit.errors import RunFault
from llmkit.loop.budget import Budget
from llmkit.loop.run import Run
from llmkit.loop.scalars import Scalars
from llmkit.monitor.flops import bits_per_byte, train_flops_per_token, utilization
from llmkit.monitor.hardware import device_peak, peak_memory_gib


class ChooseSteps:
    """Turns a time budget into `max_steps`, once, and records it."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        if run.progress.max_steps is not None:
            return
        tokens = run.config.train.global_batch_size * run.config.data.sequence_length
        plan = self.budget.after_step(run.progress.step, tokens)
        if plan is None:
            return
        run.progress.max_steps = run.console.max_steps = plan.max_steps
        run.events.record("max_steps", **plan._asdict())
        run.console.note(
            f"max_steps = {plan.max_steps}: {run.config.train.max_minutes:g} minutes at "
            f"{plan.step_seconds:.2f} s a step, {plan.reserved_seconds:.0f} s kept for the end"
        )


class Log:
    """Writes rows to metrics.jsonl and the console; scalars are read a step late.

    Also counts skipped updates, and ends the run after too many in a row.
    """

    def __init__(self, run: Run) -> None:
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        self.peak, self.peak_label = device_peak(run.device, dtype)
        self.flops_per_token = train_flops_per_token(run.shape, run.config.data.sequence_length)
        self._steps = self._targets = 0
        self._first, self._told = True, False
        self._pending: tuple[int, int, float, Scalars, dict[str, Any]] | None = None

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        self.flush(run)
        step = run.progress.step
        self._steps += 1
        self._targets += result.targets
        timing: dict[str, Any] = {}
        first, self._first = self._first, False
        if step == 1 or step % run.config.monitor.log_every == 0 or run.progress.finished():
            timing = self._timing(run)
        elif first:  # of this process: it compiles, and would spoil the mean of a resumed run's first row
            run.clock.read()
            self._steps = self._targets = 0
        self._pending = step, run.progress.tokens, learning_rate, Scalars(result), timing
        run.console.progress(step)

    def _timing(self, run: Run) -> dict[str, Any]:
        """The columns that are means since the last row."""
        seconds, waited = run.clock.read()
        rate = self._targets / seconds
        row = {
            "step_seconds": seconds / self._steps,
            "tokens_per_second": rate,
            "data_seconds": waited / self._steps,
            "mfu": utilization(rate, self.flops_per_token, self.peak),
            "mfu_peak": self.peak_label,
            "peak_memory_gib": peak_memory_gib(run.device),
        }
        self._steps = self._targets = 0
        return row

    def flush(self, run: Run) -> None:
        """Reads the newest step's scalars; after this, everything that happened is on record."""
        if self._pending is None:
            return
        (step, tokens, learning_rate, scalars, timing), self._pending = self._pending, None
        loss, norm, skipped = scalars.read()
        if timing or skipped:
            row = {
                "step": step,
                "tokens": tokens,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": learning_rate,
                **timing,
                **({"skipped": True} if skipped else {}),
            }
            run.metrics.append(row)
            run.console.row(row)
            if run.metrics.fault and not self._told:
                run.console.note(
                    f"metrics.jsonl cannot be written, its rows wait in memory: {run.metrics.fault}"
                )
            self._told = run.metrics.fault is not None
        progress = run.progress
        progress.skipped += skipped
        progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
        limit = run.config.train.max_nonfinite_steps
        if progress.skipped_in_a_row >= limit:
            raise RunFault(
                f"step {step}: the gradient was not finite {limit} times in a row "
                "(train.max_nonfinite_steps); these updates were skipped. The same command goes on from the "
                f"newest checkpoint in {run.folder.checkpoints}. A lower "
                "optimizer.learning_rate often helps; else look for the cause in the data"
            )


class Evaluate:
    """Held-out loss every `evaluate.every_steps` and at the end."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        every = run.config.evaluate.every_steps
        if run.progress.finished() or (every and run.progress.step % every == 0):
            self.evaluate(run)

    def evaluate(self, run: Run) -> None:
        """Evaluates at this step; does nothing if that was done, or nothing is held out."""
        if run.heldout is None or run.progress.evaluated_step == run.progress.step:
            return
        self.log.flush(run)
        with run.clock.paused():
            rows = run.engine.evaluate(batch.to(run.device) for batch in run.heldout)
            nats = float(rows.nats.double().sum())
        loss, bits = nats / run.heldout.targets, bits_per_byte(nats, run.heldout.text_bytes)
        run.progress.record_evaluation(loss, run.config.evaluate.early_stopping)
        run.metrics.append({"step": run.progress.step, "eval_loss": loss, "eval_bits_per_byte": bits})
        run.console.evaluation(run.progress.step, loss, bits)
        if run.progress.stopped_early:
            run.events.record("early_stopping", step=run.progress.step, best=run.progress.best_eval_loss)
            run.console.note(
                f"stopping early: {run.progress.evaluations_without_gain} evaluations without a lower loss"
            )


class Save:
    """Checkpoints every `checkpoint.every_steps` and `checkpoint.every_minutes`.

    A save that fails is reported and tried again at the next time: training goes on.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self._last = time.monotonic()

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        every, minutes = run.config.checkpoint.every_steps, run.config.checkpoint.every_minutes
        due = bool(every) and run.progress.step % every == 0
        if not due and not (minutes and time.monotonic() - self._last >= 60.0 * minutes):
            return
        self.log.flush(run)
        self._last = time.monotonic()
        with run.clock.paused():
            try:
                run.save()
            except RunFault as fault:
                run.events.record("save_failed", step=run.progress.step, reason=str(fault))
                run.console.note(f"NOT SAVED, training goes on: {fault}")
