"""Training, top to bottom: join, set up, loop, tear down. Every process of a run does the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import NoReturn

from llmkit.config.load import Loaded
from llmkit.config.registered import components
from llmkit.config.walk import leaves
from llmkit.errors import RunFault, UserError
from llmkit.loop.basis import Start
from llmkit.loop.batches import listen, next_batch
from llmkit.loop.budget import Budget
from llmkit.loop.choose_steps import ChooseSteps, time_over
from llmkit.loop.control import Wishes
from llmkit.loop.ends import record_fault, stop_at_start, stop_run
from llmkit.loop.evaluate import Evaluate
from llmkit.loop.finish import finish
from llmkit.loop.folder import open_folder
from llmkit.loop.hooks import Log, Save
from llmkit.loop.resume import Options
from llmkit.loop.run import Hook, Run
from llmkit.loop.samples import SampleLog
from llmkit.loop.setup import open_console, open_mirror, resolve_launch, set_up
from llmkit.loop.stop import StopRequest
from llmkit.monitor.events import failure_recorded
from llmkit.monitor.wandb_names import check_environment
from llmkit.optim.schedule import learning_rate_at
from llmkit.parallel.agreement import check_same_on_all_ranks, fail_together, software_versions
from llmkit.parallel.randomness import seed_step
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import process_group
from llmkit.registry import source_hashes
from llmkit.stopping import Listener, Stopped


def train(loaded: Loaded, options: Options, *, started: float, environment: Mapping[str, str]) -> int:
    """Trains the run that the configuration describes, from where it stands; returns the exit code.

    started: time.monotonic() at the start of the command, from which `train.max_minutes` counts.
    Raises UserError, RunFault, and AlreadyReported where another process of the run has printed the error.
    """
    config = loaded.config
    place = rank_info_from_env(environment)
    try:
        known, plan = resolve_launch(loaded, environment, place.world_size)
    except UserError as error:
        refuse(error, environment)
    sharded = plan.layout.engine == "deepspeed"
    if sharded:
        from llmkit.engine.deepspeed import import_deepspeed

        import_deepspeed()  # sets it up, which must come before any process group
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    with Listener(environment) as listener, process_group(place, timeout, needs_group=sharded) as mesh:
        listener.listen()
        with fail_together(mesh):  # meets `refuse` of a rank that has other settings, or another launch
            check_environment(config.monitor.wandb, loaded.origins, environment)
        settings = {path: str(value) for path, value in leaves(config)}
        code = source_hashes(config.plugins, components(config))
        check_same_on_all_ranks(mesh, software_versions() | settings | code | plan.facts())
        mesh = mesh.split(tensor=plan.layout.tensor_parallel_size)
        start = Start(loaded, plan, known, mesh, options, place.local_size)
        return _train(start, listener, started, environment)


def refuse(error: UserError, environment: Mapping[str, str]) -> NoReturn:
    """Ends all processes of a run whose configuration this one cannot use."""
    try:
        with (
            process_group(rank_info_from_env(environment), timedelta(minutes=1)) as mesh,
            fail_together(mesh),
        ):
            raise error
    except RunFault:  # the others have not come
        raise error from None


def _train(start: Start, listener: Listener, started: float, environment: Mapping[str, str]) -> int:
    mesh = start.mesh
    with ExitStack() as stack:
        console = open_console(mesh)
        stack.callback(console.close)
        folder = stack.enter_context(open_folder(start.loaded, mesh, environment))
        console.keep_log(folder.logs / f"rank-{mesh.rank:05d}.log")
        stop = StopRequest(listener, folder, console.note)
        try:
            stop.give_up(everywhere=mesh.world_size == 1)
            run = set_up(start, folder, console, stack)
            if run.progress.finished() and run.was_done:
                finish(run, stop)
                return 0
            code = _run(run, start, stop, started, environment)
        except Stopped as stopped:
            return stop_at_start(mesh, folder, console, stop, stopped)
        if code == 0:
            finish(run, stop)
        return code


def _run(run: Run, start: Start, stop: StopRequest, started: float, environment: Mapping[str, str]) -> int:
    """The loop, with its logs and mirror, and with a fault on record."""
    with ExitStack() as stack:
        with failure_recorded(run.events):
            log, samples = Log(run), stack.enter_context(closing(SampleLog(run)))
            mirror = open_mirror(run, start.loaded, environment)
        code = 1
        try:
            code = _loop(run, log, samples, stop, started)
        except Stopped:
            raise
        except BaseException as error:
            cause = record_fault(run, log, error)
            if cause is error:
                raise
            raise cause from error
        finally:
            if problem := mirror.finish(code):
                run.console.note(problem)
        return code


def _loop(run: Run, log: Log, samples: SampleLog, stop: StopRequest, started: float) -> int:
    """Steps until the end, or until somebody asks to stop; either way the last step is saved."""
    config, progress = run.config, run.progress
    budget = Budget.for_run(config, started, run.heldout) if progress.max_steps is None else None
    choose, stop.time_over = ChooseSteps(budget, log), time_over(run, started)
    evaluate, save = Evaluate(log, stop), Save(log)
    hooks: list[Hook] = [choose, log, save, evaluate]  # what takes long comes when all is saved
    batches = iter(run.loader)
    listen(run, stop)
    evaluate.catch_up(run)
    while not progress.finished():
        if run.agreed.stop or (batch := next_batch(run, log, batches)) is None:
            return stop_run(run, log, stop)
        run.in_step = True
        micro_batches = [micro.to(run.device) for micro in batch.micro_batches]
        learning_rate = learning_rate_at(progress.step + 1, progress.max_steps, config)
        seed_step(config.run.seed, progress.step, run.mesh["data", "context"].rank)
        targets = batch.targets
        if targets is None:  # where not every token is a target, each rank knows only its own
            targets = run.mesh.count_over_data(batch.own_targets)
        result = run.engine.train_step(micro_batches, targets, learning_rate)
        stop.hold()
        progress.step += 1
        progress.tokens += targets
        run.in_step = False
        samples.record(progress.step, batch)
        wishes = Wishes(stop.wish(), save.wish(run), choose.wish(run), not run.loader.ready(2))
        run.agreed = run.control.exchange(wishes, batch.hash)
        for hook in hooks:
            hook.after_step(run, result, learning_rate)
    run.control.close()
    log.flush(run)
    run.save()
    return 0 if evaluate.evaluate(run) else stop_run(run, log, stop)
