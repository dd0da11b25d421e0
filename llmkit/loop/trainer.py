"""The trainer: a run from its next step to its end, with all that happens between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmkit.checkpoint.format import folder_name
from llmkit.checkpoint.read import Checkpoint
from llmkit.config.schema import Config
from llmkit.data.eval_loader import EvalLoader
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.data.rank_batch import RankBatch
from llmkit.end_file import own_host
from llmkit.engine.base import Engine, StepResult
from llmkit.files import plain
from llmkit.kernels.compiler import each_once, graph_breaks, graphs_compiled
from llmkit.loop.batches import Batches, NoBatch
from llmkit.loop.best import NameBest
from llmkit.loop.budget import Budget
from llmkit.loop.checks import Checks
from llmkit.loop.control import NOTHING, Agreed, Control
from llmkit.loop.ends import raise_failures, save_and_fail, stop_run
from llmkit.loop.epochs import epoch_columns
from llmkit.loop.evaluations import evaluate_if_due, evaluate_now, evaluate_tasks_now, may_end_here
from llmkit.loop.forecast import Forecast
from llmkit.loop.gpu_memory import MicroBatchHint, named_where_full
from llmkit.loop.hook_list import HookList, name_of
from llmkit.loop.launch import Launch
from llmkit.loop.profile_steps import ProfileSteps
from llmkit.loop.recorder import Recorder, Rule
from llmkit.loop.rollback import Rollbacks, roll_back
from llmkit.loop.routing_log import routing_log
from llmkit.loop.samples import LeftOutReport, SampleLog
from llmkit.loop.save_request import SaveRequest
from llmkit.loop.save_timer import SaveTimer
from llmkit.loop.saving import Saves
from llmkit.loop.source_losses import SourceLosses
from llmkit.loop.spending import Spending
from llmkit.loop.start_plan import show_start
from llmkit.loop.state import TrainState
from llmkit.loop.step_details import StepDetails, spike_detector
from llmkit.loop.step_log import Columns, make_step_log
from llmkit.loop.stop import StopRequest
from llmkit.loop.time_budget import TimeBudget, time_over
from llmkit.loop.watching import WatchHook
from llmkit.loop.work import Work
from llmkit.monitor.columns import OWN_NAMES
from llmkit.monitor.console import Console
from llmkit.monitor.events import EventLog
from llmkit.monitor.goodput import Ledger
from llmkit.monitor.media import MediaSink, checked
from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.sink import Sink
from llmkit.optim.schedule import step_values
from llmkit.parallel.context import context_parallel
from llmkit.parallel.randomness import seed_step
from llmkit.plan import Plan
from llmkit.run_folder import RunFolder
from llmkit.watchdog.watch import Watch


class Trainer:
    """Trains a run step by step. What happens after a step, in this order: requests of all hooks are merged
    and agreed between ranks; hooks are called; the row is made; a checkpoint is saved; the held-out loss is
    computed. What takes long comes when all is saved.

    Hooks read `config`, `plan`, `mesh`, `state`, `engine`, `learning_rate` (of the newest step) and
    `phases`, and call `record`. plan: complete. state: counters, as the checkpoint left them. saved_step:
    step of the checkpoint that the run goes on from, None for a new run. was_done: whether the run folder
    was marked as done. sinks: receive every row. saved_state: that of the checkpoint; for a new run, what
    its first checkpoint inherits. metrics: the rows on record. restore: gives `engine` an earlier state.
    """

    def __init__(
        self, launch: Launch, plan: Plan, data: PreparedData, loader: TrainLoader, heldout: EvalLoader | None,
        engine: Engine, state: TrainState, *, folder: RunFolder, console: Console, events: EventLog,
        sinks: list[Sink], watch: Watch, stop: StopRequest, saved_step: int | None, was_done: bool,
        saved_state: Mapping[str, Any], spending: Spending, metrics: MetricsFile, rollbacks: Rollbacks,
        restore: Callable[[Checkpoint], None],
    ) -> None:  # fmt: skip
        self.config: Config = launch.config
        self.mesh, self.plan, self.data, self.loader, self.heldout = launch.mesh, plan, data, loader, heldout
        self.engine, self.state, self.folder, self.console = engine, state, folder, console
        context = context_parallel(self.mesh, plan.layout.context_parallel_form)
        self.ranges = context.own(self.config.data.sequence_length)
        """The positions of each row that this rank computes; None: all."""
        self.events, self.stop, self.clock, self.saved_step = events, stop, launch.clock, saved_step
        self.environment, self.first_step, self.watch = launch.environment, state.step, watch
        self.learning_rate, self.tasks_seconds = 0.0, 0.0
        self.in_step = False
        """Whether a step has begun and is not over: then nothing can be saved."""
        self.agreed: Agreed = NOTHING
        """The requests that hold after the newest step."""
        self.phases, self.ledger, self.work = launch.phases, Ledger(launch.phases.totals), Work(plan)
        self.metrics, self.rollbacks, self.restore = metrics, rollbacks, restore
        self.row_columns: list[Columns] = [self.ledger.columns, partial(epoch_columns, loader)]
        """Called on each rank for a row that is due: each gives some of its columns, on rank 0."""
        self._where = f"rank {self.mesh.rank}: " if self.mesh.world_size > 1 else ""
        self._started, self._sinks, self.spending = launch.started, sinks, spending
        self._was_done, self._saved_state = was_done, saved_state
        self.init_from: Mapping[str, Any] | None = saved_state.get("init_from")
        """The weights that the run began with: their folder, and a digest of them; None for random ones."""
        self.branched_from: Mapping[str, Any] | None = saved_state.get("branched_from")
        """The checkpoint of another run that this one began with: see `loop.branch.origin_record`."""
        self.control = Control(self.mesh)
        budget = None
        if state.max_steps is None:
            budget = Budget.for_run(self.config, self._started, self.clock(), heldout)
        saves = [SaveTimer(self.config.checkpoint.every_minutes, self.clock()), SaveRequest(), NameBest()]
        self.forecast = Forecast(launch, plan)
        self.row_columns.append(self.forecast.columns)
        own = [TimeBudget(budget), *saves, MicroBatchHint(), ProfileSteps(self.config), WatchHook(watch)]
        self.hooks = HookList([*own, self.forecast], launch.hooks)
        self.saves = Saves(self, launch.local_size)
        self.checks, self.hosts = Checks(self), list[str]()
        """hosts: of the ranks."""
        self.recorder = Recorder(self.mesh, OWN_NAMES, gathers=self.hooks.has_others)
        self.details = StepDetails(
            SourceLosses(loader.source_names, self.mesh.device), spike_detector(self.config),
            self.config.data.sequence_length, self.write_row, self._write_media,
            self.checks.spiked, self.checks.gradients,
            routing_log(self.config, plan.model, self.mesh.device), self.checks.routing,
        )  # fmt: skip
        self._samples = SampleLog(folder, self.mesh) if self.config.monitor.log_samples else None
        self._left_out = LeftOutReport(loader, console.note)
        self.note_once = each_once(console.note)
        stop.time_over = self.time_over

    @property
    def has_nothing_to_do(self) -> bool:
        """Whether the run was finished when this process found it, and still is."""
        return self._was_done and self.state.finished()

    def start(self) -> None:
        """What comes before the first step: measures the device's peak, calls hooks. All ranks call it."""
        self.hosts = self.mesh.all_gather_text(own_host(self.environment))
        self.log = make_step_log(self, self.recorder, self.details)
        if self.mesh.rank == 0:
            show_start(self, self.log.speed.label)
        self.spending.start(self)
        if self.plan.kernels.compiled:
            self.console.note(
                "compiling the model: the first step waits for it, often for a minute or more; the code is "
                "kept, and a later start is faster"
            )
        self.load_recorded(self._saved_state)
        self.hooks.call("on_start", self)
        raise_failures(self)

    def load_recorded(self, state: Mapping[str, Any]) -> None:
        """Takes what a checkpoint keeps of hooks, and of what no row has taken yet."""
        self.recorder.load_state(state.get("recorded", []))
        self.details.load_state(state.get("details", {}))
        self.hooks.load_states(state.get("hooks", {}))

    def fit(self) -> int:
        """Steps until the end, or until somebody asks to stop; either way the last step is saved.

        Returns the exit code. All ranks call it.
        """
        batches = Batches(self.loader, self.control, self.stop_code)
        if self.branched_from and self.saved_step is None:
            self.save()  # from here on the run that it began with is not needed
        evaluate_if_due(self)
        while not self.state.finished():
            if self.agreed.rollback and roll_back(self, self.agreed.rollback):
                continue
            if self.agreed.failed:
                save_and_fail(self, self.hooks.failure)
            if self.agreed.stop:
                return self._stop()
            with self.phases.span("data", limit=self.config.data.stall_seconds):
                batch = batches.next(bool(self.agreed.unready))
            if isinstance(batch, NoBatch):
                if batch.failed:
                    save_and_fail(self, batch.error)
                self.agreed = self.agreed._replace(stop=batch.stop)
                return self._stop()
            self._after_step(batch, self._step(batch))
            if self.state.finished():
                self.save_last()  # which may find that the run must go back
        self.watch.settle()
        self.save_last()
        if not (evaluate_now(self) and evaluate_tasks_now(self)):
            return self._stop()
        self.spending.update()
        self.hooks.call("on_end", self)
        raise_failures(self)
        return 0

    def _step(self, batch: RankBatch) -> StepResult:
        """One optimizer step, counted."""
        state, self.in_step = self.state, True
        compiles = self.plan.kernels.compiled and not self.log.warmed_up
        graphs = graphs_compiled() if self.plan.kernels.compiled else 0
        with self.phases.span("compile" if compiles else "step", limit=self.step_limit):
            micro_batches = [micro.cut(self.ranges).to(self.mesh.device) for micro in batch.micro_batches]
            values = step_values(state.step + 1, state.max_steps, self.config, state.pace)
            self.learning_rate = self.config.optimizer.learning_rate * values.learning_rate
            self.checks.before_step(micro_batches[0])
            seed_step(self.config.run.seed, state.step, self.mesh["data", "context"].rank)
            targets = batch.targets
            if targets is None:  # where not every token is a target, each rank knows only its own
                targets = self.mesh.count_over_data(batch.own_targets)
            with named_where_full(self.plan, self.mesh.device, self.log.warmed_up, self._where):
                every = self.config.monitor.statistics_every
                measure = every > 0 and (state.step + 1) % every == 0
                result = self.engine.train_step(micro_batches, targets, values, measure)
            if self.plan.kernels.compiled and graphs_compiled() > graphs:
                self.phases.rename("compile")  # as for a batch of another shape
        self.stop.hold()
        state.step += 1
        state.tokens += targets
        self.in_step = False
        return result

    @property
    def step_limit(self) -> float:
        """Seconds that a step may take."""
        return 60.0 * self.config.parallel.timeout_minutes

    def _after_step(self, batch: RankBatch, result: StepResult) -> None:
        self.folder.claim.raise_if_lost()
        if self._samples is not None:
            self._samples.record(self.state.step, batch)
        self.agreed = self.control.exchange(self._requests(), batch.hash)
        if self.agreed.max_steps:
            self.end_after(self.agreed.max_steps)
        self.saves.poll(-self.agreed.saves)
        self.checks.after_step()
        self.hooks.call("after_step", self, result)
        every, step = self.config.monitor.log_every, self.state.step
        row_due = step == 1 or step % every == 0 or may_end_here(self)
        first = not self.log.warmed_up
        causal = self.work.causal(batch) if self.mesh.rank == 0 else None
        self.log.after_step(result, self.learning_rate, row_due, causal)
        if first and self.plan.kernels.compiled and (breaks := graph_breaks()):
            most = max(breaks, key=lambda reason: breaks[reason])
            self.console.note(f"torch.compile could not take {sum(breaks.values())} places, such as: {most}")
        if row_due:
            self._left_out.report()
        self.console.progress(step)
        every = self.config.checkpoint.every_steps
        if self.agreed.save or (every and step % every == 0):
            self.saves.save_and_go_on()
        evaluate_if_due(self)

    def _requests(self) -> Agreed:
        """What this rank asks for after this step."""
        save = evaluate = max_steps = 0
        for hook, request in self.hooks.requests(self):
            save, evaluate = save or int(request.save), evaluate or int(request.evaluate)
            max_steps = max(max_steps, request.max_steps)
            if request.stop and not self.stop.hook:
                self.stop.hook = f"the hook {name_of(hook)}: {request.stop}"
        unready = int(not self.loader.ready(2))
        failed = int(self.hooks.failure is not None)
        back, again = self.rollbacks.asked, int(bool(self.checks.suspicion))
        saves = -self.saves.finished
        return Agreed(self.stop_code(), save, evaluate, max_steps, failed, unready, back, again, saves)

    def record(self, name: str, value: float | torch.Tensor, reduce: Rule = "mean") -> None:
        """Records a number for the next row of metrics.jsonl: see `Recorder.record`."""
        self.recorder.record(name, value, reduce)

    def record_event(self, event: str, **fields: Any) -> None:
        """Records an event with where the time went, and what was used, until now."""
        self.spending.update()
        self.events.record(event, **fields, account=self.ledger.now().to_json(), spent=self.spending.used())

    def end_after(self, step: int) -> None:
        """Finishes the run after this step, or now if it has passed; to be called on all ranks alike."""
        self.state.end_after(step)
        self.console.max_steps = self.state.max_steps

    def stop_code(self) -> int:
        """Why this rank should stop, an index into `stop.REASONS`; 0 = it should not. Asked by
        all that waits, so that it is a sign of life."""
        self.watch.alive()
        return self.stop.code()

    def time_over(self) -> bool:
        """Whether the run must begin to end for `train.max_minutes` to hold; rank 0 decides."""
        if self.mesh.rank > 0:
            return False
        seconds = self.saves.seconds * (1 + self.saves.in_flight)  # the one in flight, and the last one
        return time_over(self.config.train, self.state, self._started, self.clock, seconds)

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Adds a row to metrics.jsonl, and gives it to the sinks."""
        self.folder.claim.raise_if_lost()
        row = plain(row)
        for sink in self._sinks:
            sink.write(row)

    def cut_back(self, step: int) -> None:
        """Drops the rows, and the items of media.jsonl, of the steps after this one."""
        self.metrics.cut_back(step)
        for sink in self._sinks:
            if isinstance(sink, MediaSink):
                sink.cut_back(step)

    def write_media(self, item: Mapping[str, Any]) -> None:
        """Records a histogram, a table or an image of this step in media.jsonl, and shows it to the sinks.

        Made by the functions of `llmkit.monitor.media`; on ranks other than 0 nothing happens. Raises
        UserError for another item.
        """
        self._write_media(item, self.state.step)

    def _write_media(self, item: Mapping[str, Any], step: int) -> None:
        item = {"step": step, **plain(checked(item))}
        for sink in self._sinks:
            sink.media(item)

    def save(self) -> Path:
        """See `Saves.save`."""
        return self.saves.save()

    def save_last(self) -> Path:
        """Ends the exchange of requests, which finds batches that differ between ranks, then saves."""
        self.control.close()
        return self.save()

    @property
    def evaluation_due(self) -> bool:
        """Whether `evaluate.every_steps` asks for an evaluation at this step."""
        every, step = self.config.evaluate.every_steps, self.state.step
        return self.heldout is not None and every > 0 and step > 0 and step % every == 0

    @property
    def checkpoint(self) -> Path:
        """The folder of this step's checkpoint, once it is saved."""
        return self.folder.checkpoints / folder_name(self.state.step)

    @property
    def unsaved_steps(self) -> int:
        """Steps that no checkpoint holds."""
        return self.state.step - (self.first_step if self.saved_step is None else self.saved_step)

    def _stop(self) -> int:
        self.watch.settle()
        code = stop_run(self)
        self.hooks.call("on_end", self)
        raise_failures(self)
        return code

    def close(self) -> None:
        """Closes the list of what was trained on."""
        if self._samples is not None:
            self._samples.close()
