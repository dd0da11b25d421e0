"""What happens after a step: logging, saving."""

from __future__ import annotations

import time
from typing import Any

import torch

from llmkit.engine.base import StepResult
from llmkit.errors import DisagreementError, RunFault
from llmkit.kernels.compiler import graph_breaks
from llmkit.loop.run import Run
from llmkit.loop.samples import TellLeftOut
from llmkit.loop.scalars import Scalars
from llmkit.monitor.flops import train_flops_per_token, utilization
from llmkit.monitor.hardware import device_peak, peak_memory_gib


class Log:
    """Writes rows to metrics.jsonl and the console; scalars are read a step late.

    The first step of a process that computes something compiles and warms caches: it counts in no mean of
    times, and the times of a row that holds nothing else are null. Also counts skipped updates, and ends the
    run after too many in a row.
    """

    def __init__(self, run: Run) -> None:
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        # The first rank alone writes rows; the others need not measure their CPU.
        self.peak, self.peak_label = device_peak(run.device, dtype) if run.mesh.rank == 0 else (None, "")
        self.flops_per_token = train_flops_per_token(run.shape, run.config.data.sequence_length)
        self._steps = self._computed = 0  # since the last row; without a target nothing is computed
        self._tokens_per_step = run.config.train.global_batch_size * run.config.data.sequence_length
        self._first, self._told = True, False
        self._left_out = TellLeftOut()
        self._pending: tuple[int, int, float, Scalars, dict[str, Any]] | None = None
        if run.engine.model.compiled:
            run.console.note("compiling the model: the first step takes much longer than those after it")

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        self.flush(run)
        step = run.progress.step
        self._steps += 1
        self._computed += result.targets > 0
        timing: dict[str, Any] = {}
        first = self._first
        self._first = first and result.targets == 0  # which computes nothing, and so compiles nothing
        if first and run.engine.model.compiled and (breaks := graph_breaks()):
            most = max(breaks, key=lambda reason: breaks[reason])
            run.console.note(f"torch.compile could not take {sum(breaks.values())} places, such as: {most}")
        if first:
            run.clock.read()
            self._steps = self._computed = 0
        if step == 1 or step % run.config.monitor.log_every == 0 or run.may_end_here:
            timing = self._timing(run)
        self._pending = step, run.progress.tokens, learning_rate, Scalars(result), timing
        run.console.progress(step)

    def _timing(self, run: Run) -> dict[str, Any]:
        """The columns that are means since the last row; null where no step is to be counted."""
        seconds, waited = run.clock.read()
        steps = self._steps
        rate = self._computed * self._tokens_per_step / seconds if steps else None
        row = {
            "step_seconds": seconds / steps if steps else None,
            "tokens_per_second": rate,
            "data_seconds": waited / steps if steps else None,
            "mfu": rate and utilization(rate, self.flops_per_token, self.peak, run.mesh.world_size),
            "mfu_peak": self.peak_label,
            "peak_memory_gib": peak_memory_gib(run.device),
        }
        self._steps = self._computed = 0
        return row

    def flush(self, run: Run) -> None:
        """Reads the newest step's scalars; after this, everything that happened is on record."""
        if self._pending is None:
            return
        (step, tokens, learning_rate, scalars, timing), self._pending = self._pending, None
        loss, norm, skipped = scalars.read()
        if loss is not None:
            run.progress.add_loss(loss, scalars.targets)
        if timing:
            timing["loss_mean"] = run.progress.take_mean_loss()
            self._left_out.tell(run)
        no_targets = scalars.targets == 0
        if timing or skipped or no_targets:
            row = {
                "step": step,
                "tokens": tokens,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": learning_rate,
                **timing,
                **({"skipped": True} if skipped else {}),
                **({"no_targets": True} if no_targets else {}),
            }
            run.metrics.append(row)
            run.console.row(row)
            if run.metrics.fault and not self._told:
                run.console.note(
                    f"metrics.jsonl cannot be written, its rows wait in memory: {run.metrics.fault}"
                )
            self._told = run.metrics.fault is not None
        progress = run.progress
        progress.no_targets += no_targets
        progress.skipped += skipped
        if not no_targets:  # it neither mends a run of skipped updates nor is one of them
            progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
        limit = run.config.train.max_nonfinite_steps
        if progress.skipped_in_a_row >= limit:
            saved = run.saved_step
            start = "starts anew, as nothing was saved" if saved is None else f"goes on from step {saved}"
            raise RunFault(
                f"step {step}: the gradient was not finite {limit} times in a row "
                f"(train.max_nonfinite_steps); these updates were skipped. The same command {start}. A lower "
                "optimizer.learning_rate often helps; else look for the cause in the data"
            )


class Save:
    """Checkpoints every `checkpoint.every_steps` and `checkpoint.every_minutes`.

    A save that fails is reported and tried again at the next time: training goes on.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self._last = time.monotonic()

    def wish(self, run: Run) -> int:
        """1 where it is time for a checkpoint by the clock; said once."""
        minutes = run.config.checkpoint.every_minutes
        due = bool(minutes) and time.monotonic() - self._last >= 60.0 * minutes
        if due:
            self._last = time.monotonic()
        return int(due)

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        every = run.config.checkpoint.every_steps
        if not run.agreed.save and not (every and run.progress.step % every == 0):
            return
        self.log.flush(run)
        self._last = time.monotonic()
        with run.clock.paused():
            try:
                run.save()
            except DisagreementError:
                raise  # no later save could be better
            except RunFault as fault:
                run.events.record("save_failed", step=run.progress.step, reason=str(fault))
                run.console.note(f"NOT SAVED, training goes on: {fault}")
