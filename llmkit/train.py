"""Training, top to bottom: join, set up, loop, tear down. Every process of a run does the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from llmkit.config.entries import make_all
from llmkit.config.load import Loaded
from llmkit.config.registered import components
from llmkit.config.walk import leaves
from llmkit.cores import raise_open_files
from llmkit.end_file import End
from llmkit.errors import RunFault, UserError
from llmkit.loop.auto_layout import choose_layout
from llmkit.loop.build import build_trainer
from llmkit.loop.copying import open_copies
from llmkit.loop.ends import record_end, record_fault, stop_at_start, stop_before_start
from llmkit.loop.finish import finish
from llmkit.loop.folder import open_folder
from llmkit.loop.hook import Hook
from llmkit.loop.hook_list import instances, name_of
from llmkit.loop.launch import Launch
from llmkit.loop.mirror import open_mirror
from llmkit.loop.options import Options
from llmkit.loop.phases import Phases
from llmkit.loop.stop import StopRequest
from llmkit.loop.trainer import Trainer
from llmkit.loop.watching import open_watch
from llmkit.monitor.events import failure_recorded
from llmkit.monitor.quiet import console_of_rank
from llmkit.monitor.sink import Sink
from llmkit.monitor.wandb_names import check_environment
from llmkit.parallel.accelerate import read_accelerate
from llmkit.parallel.agreement import check_same_on_all_ranks, fail_together, software_versions
from llmkit.parallel.context import split_mesh
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import process_group
from llmkit.plan import Known, resolve_plan
from llmkit.registry import source_hashes
from llmkit.stopping import Listener, Stopped


def train(
    loaded: Loaded, options: Options, *, started: float, environment: Mapping[str, str],
    hooks: Sequence[Hook] = (), sinks: Sequence[Sink] = (), clock: Callable[[], float] = time.monotonic,
    own_process: bool = False,
) -> int:  # fmt: skip
    """Trains the run that the configuration describes, from where it stands; returns the exit code.

    started: of the command, by `clock`, from which `train.max_minutes` counts. hooks, sinks: beside those of
    the configuration, which come first; the same on all ranks. clock: seconds from any origin, for all that
    depends on time. own_process: as in Launch.
    Raises UserError, RunFault, HookError where a hook has failed, and AlreadyReported where another process
    of the run has printed the error.
    """
    raise_open_files()
    rank_info = rank_info_from_env(environment)
    try:
        known = Known(rank_info.world_size, read_accelerate(environment))
        loaded = choose_layout(loaded, known, rank_info)
        plan = resolve_plan(loaded, known)
    except UserError as error:
        refuse(error, environment)
    config = loaded.config
    sharded = plan.layout.engine == "deepspeed"
    if sharded:
        from llmkit.engine.deepspeed import import_deepspeed

        import_deepspeed()  # sets it up, which must come before any process group
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    with Listener(environment) as listener, process_group(rank_info, timeout, needs_group=sharded) as mesh:
        listener.listen()
        with fail_together(mesh):  # meets `refuse` of a rank that has other settings, or another launch
            check_environment(
                config.monitor.wandb, loaded.origins, environment, Path(config.run.dir, config.run.name)
            )
            hooks = instances([*make_all(config, "hook"), *hooks], Hook)
            sinks = instances(sinks, Sink)
        settings = {path: str(value) for path, value in leaves(config)}
        code = source_hashes(config.plugins, components(config))
        called = {f"hook {number}": name_of(hook) for number, hook in enumerate(hooks, start=1)}
        check_same_on_all_ranks(mesh, software_versions() | settings | code | called | plan.facts())
        launch = Launch(
            loaded, options, environment, plan, known, split_mesh(mesh, plan.layout),
            rank_info.local_size, started, clock, Phases(clock, started), hooks, sinks, own_process,
        )  # fmt: skip
        return _train(launch, listener)


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


def _train(launch: Launch, listener: Listener) -> int:
    """Opens the run folder and builds the trainer in it, trains, and closes all of it."""
    mesh = launch.mesh
    with ExitStack() as stack:
        console = console_of_rank(mesh.rank, launch.options.quiet)
        stack.callback(console.close)
        try:
            folder = stack.enter_context(open_folder(launch, console.note))
        except Stopped as stopped:
            return stop_before_start(launch, console, stopped)
        console.keep_log(folder.logs / f"rank-{mesh.rank:05d}.log")
        watch = open_watch(launch, folder, console.note, stack)
        stop = StopRequest(listener, folder, console.note)
        try:
            stop.give_up(everywhere=mesh.world_size == 1)
            with launch.phases.span("start"):
                trainer = build_trainer(launch, folder, console, stop, stack, watch)
            code = 0 if trainer.has_nothing_to_do else _run(trainer, launch, stack)
        except Stopped as stopped:
            return stop_at_start(launch, folder, console, stop, stopped)
        finally:
            stop.hold()  # what follows, as the closing of files, is not interrupted
        if code == 0:
            finish(trainer)
            record_end(trainer, End("done"))
        return code


def _run(trainer: Trainer, launch: Launch, stack: ExitStack) -> int:
    """The loop, followed by the mirror to Weights & Biases, and with a fault on record."""
    with failure_recorded(trainer.events), launch.phases.span("start"):
        trainer.start()
        end_copies = open_copies(trainer, launch, stack)
        mirror = open_mirror(trainer, launch, stack)
        stack.callback(end_copies)  # first of all: both take their time, at once
    try:
        mirror.exit_code = trainer.fit()
    except Stopped:
        raise
    except BaseException as error:
        cause = record_fault(trainer, error)
        if cause is error:
            raise
        raise cause from error
    return mirror.exit_code
