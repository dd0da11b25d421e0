"""Training, top to bottom: set up, loop, tear down."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from llmkit.config.load import Loaded
from llmkit.loop.budget import Budget
from llmkit.loop.device import check_world
from llmkit.loop.finish import finish
from llmkit.loop.hooks import ChooseSteps, Evaluate, Log, Save
from llmkit.loop.run import Hook, Run
from llmkit.loop.setup import open_folder, set_up
from llmkit.loop.stop import StopRequest
from llmkit.monitor.console import Console
from llmkit.monitor.wandb_mirror import Mirror
from llmkit.monitor.wandb_mode import resolve_mode
from llmkit.optim.schedule import share_at
from llmkit.parallel.randomness import seed_step

STOPPED = 75
"""Exit code of a run that was asked to stop: it is saved, and the same command goes on with it."""
UNKNOWN_END = 10**9
"""Stands for max_steps until a time budget has become steps: no decay begins before that."""


def train(loaded: Loaded, *, fresh: bool, started: float, environment: Mapping[str, str]) -> int:
    """Trains the run that the configuration describes, from where it stands; returns the exit code.

    fresh: refuse a run folder that has checkpoints. started: time.monotonic() at the start of the
    command, from which `train.max_minutes` counts. Raises UserError and RunFault.
    """
    config = loaded.config
    check_world(environment.get("WORLD_SIZE"))
    resolve_mode(config.monitor.wandb.mode, environment)  # a wrong WANDB_MODE is refused before any work
    with ExitStack() as stack:
        console = Console()
        stack.callback(console.close)
        folder = stack.enter_context(open_folder(config, environment))
        console.keep_log(folder.logs / "rank-00000.log")
        run = set_up(loaded, folder, fresh, console, stack)
        if run.progress.finished() and folder.is_done:
            finish(run)
            return 0
        folder.clear_done()
        run.events.record("start" if run.saved_step is None else "resume", step=run.progress.step)
        log = Log(run)  # measures a CPU's matrix rate: before the mirror's process takes a share of it
        settings, public = config.monitor.wandb, config.model_dump(mode="json")
        mirror = Mirror.start(folder.path, settings, public, environment=environment)
        if mirror.message:
            console.note(mirror.message)
        code = 1
        try:
            code = _loop(run, log, started)
        except BaseException as error:
            run.events.record(
                "fault", step=run.progress.step, reason=f"{type(error).__name__}: {error}"[:500]
            )
            raise
        finally:
            if problem := mirror.finish(code):
                console.note(problem)
        if code == 0:
            finish(run)
        return code


def _loop(run: Run, log: Log, started: float) -> int:
    """Steps until the end, or until somebody asks to stop; either way the last step is saved."""
    config, progress = run.config, run.progress
    evaluate, save = Evaluate(log), Save(log)
    hooks: list[Hook] = [log, evaluate, save]
    if progress.max_steps is None:
        hooks.insert(0, ChooseSteps(Budget.for_run(config, started, run.heldout)))
    batches = iter(run.loader)
    with StopRequest(run.folder, run.console.note) as stop:
        while not progress.finished():
            with run.clock.waiting():
                batch = next(batches)
            micro_batches = [micro.to(run.device) for micro in batch.micro_batches]
            share = share_at(progress.step + 1, progress.max_steps or UNKNOWN_END, config.schedule)
            learning_rate = config.optimizer.learning_rate * share
            seed_step(config.run.seed, progress.step)
            result = run.engine.train_step(micro_batches, batch.targets, learning_rate)
            progress.step += 1
            progress.tokens += batch.targets
            for hook in hooks:
                hook.after_step(run, result, learning_rate)
            if (reason := stop.reason()) and not progress.finished():
                log.flush(run)
                checkpoint = run.save()
                run.events.record("stop", step=progress.step, reason=reason)
                run.console.note(
                    f"stopped by {reason}, saved {checkpoint}; the same command goes on from here"
                )
                return STOPPED
        log.flush(run)
        evaluate.evaluate(run)
        run.save()
        return 0
