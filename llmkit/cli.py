"""The commands; no logic, and nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from llmkit import __version__
from llmkit.checkpoints.options import add_checkpoint_command
from llmkit.cluster.options import add_jobs_options, add_submit_options
from llmkit.command_line import (
    LOADING,
    CommandParser,
    Commands,
    add_branch,
    add_config,
    add_json,
    count,
    positive,
    to_stderr,
    waiting_for,
)
from llmkit.completion import ASKED, add_completion_options, offer, shell_code
from llmkit.convert.options import add_export_command, add_import_command
from llmkit.doctor.options import add_doctor_options
from llmkit.error_text import show_error, wants_color
from llmkit.errors import AlreadyReported, RunFault, UserError
from llmkit.evaluation.options import add_evaluate_command
from llmkit.generation.options import add_generate_command
from llmkit.inspect.options import add_inspect_command
from llmkit.monitor.options import add_sync_command
from llmkit.planner.options import add_plan_options
from llmkit.recipes.options import add_ladder_options, add_new_options
from llmkit.report.options import add_report_command
from llmkit.serve.options import add_serve_command
from llmkit.shipped.options import add_launch_files_command
from llmkit.watch.options import add_runs_command, add_top_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 fault, 2 wrong usage, 75 stopped on request."""
    started = time.monotonic()
    _open_closed_streams()
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.encoding.lower() != "utf-8" or out.errors == "strict"):
        # As YAML reads it, too. Names of files may be no UTF-8.
        out.reconfigure(errors="backslashreplace")
    parser = _parser()
    if ASKED in os.environ:
        offer(parser)
    options, rest = parser.parse_known_args(arguments)
    # argparse does not see overrides behind an option as such.
    if any(part.startswith("-") for part in rest) or (rest and "overrides" not in options):
        options.parser.error(f"unknown arguments: {' '.join(rest)}{_meant(options, rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        code = int(options.command(options, started))
        sys.stdout.flush()  # a reader that has gone is noticed here, not when the interpreter ends
        return code
    except AlreadyReported as end:
        return end.code
    except (UserError, RunFault) as error:
        from llmkit.config.redaction import without_access

        show_error(f"llmkit: {without_access(error)}", sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # the reader of our output has gone, as in `llmkit config ... | head`
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f" {error.filename}" if error.filename else ""
        show_error(
            f"llmkit: no room to write{what}: {error.strerror}; make room on that disk, or send the output "
            "to another one",
            sys.stderr,
        )
        _drop_output()
        return 1
    except KeyboardInterrupt:
        print("llmkit: interrupted", file=sys.stderr)
        return 130


def _meant(options: argparse.Namespace, unknown: Sequence[str]) -> str:
    """The options of a command, and the settings, that are like unknown ones, as a question; "" for none."""
    known = re.findall(r"(?<!\S)--[a-z-]+", options.parser.format_help())
    found = list[str]()
    for part, behind in zip(unknown, [*unknown[1:], ""]):
        name, _, value = part.partition("=")
        if close := difflib.get_close_matches(name[:40], known, n=1, cutoff=0.7):
            found += close
        elif "overrides" in options and name.startswith("--"):
            from llmkit.config.keys import suggest

            value = value or ("" if behind.startswith("-") else behind) or "VALUE"
            found += [f"{key}={value}" for key in suggest(name[2:])]
    return f"; did you mean {' '.join(dict.fromkeys(found))}?" if found else ""


def _open_closed_streams() -> None:
    """Connects standard streams that are closed, as by `>&-`, to nothing.

    Files that are opened later would else get their descriptors, and what libraries print would land in them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _drop_output() -> None:
    """What standard output still holds goes nowhere, so that it cannot fail again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _train(options: argparse.Namespace, started: float) -> int:
    from llmkit.end_file import end_file, errors_recorded
    from llmkit.stopping import STOPPED, restarts_failed

    with errors_recorded(os.environ):
        code = _train_run(options, started)
    # A launcher would call a process that ends with 75 failed, and start it again where it may; who reads
    # $END_FILE needs no code.
    if code == STOPPED and (end_file(os.environ) or restarts_failed(os.environ)):
        return 0
    return code


def _train_run(options: argparse.Namespace, started: float) -> int:
    from llmkit.api import ask_for_determinism, let_segments_grow, load

    if options.fresh and options.allow_data_change:
        raise UserError("train: --fresh begins a run, --allow-data-change goes on with one; leave one out")
    from llmkit.build_locks import clear_build_locks

    clear_build_locks(os.environ, lambda text: print(f"llmkit: {text}", file=sys.stderr))
    try:
        loaded = load(options.config, options.overrides)
    except UserError as error:
        if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
            raise
        from llmkit.train import refuse

        refuse(error, os.environ)
    if loaded.config.run.deterministic:  # read when torch is imported, so set before
        ask_for_determinism(os.environ)
    let_segments_grow(os.environ)
    from llmkit.loop.options import Options

    with nullcontext() if options.quiet else waiting_for(LOADING, os.environ):
        from llmkit.train import train

    how = Options(
        options.fresh, options.allow_data_change, options.quiet, options.take_over, options.branch,
        options.data_position, options.anyway,
    )  # fmt: skip
    return train(loaded, how, started=started, environment=os.environ, own_process=True)


def _config(options: argparse.Namespace, started: float) -> int:
    from llmkit.api import load
    from llmkit.config_command import keys_command, schema_command, settings_command

    if sum((options.keys, options.schema, options.run_folder)) > 1:
        raise UserError("config: --keys, --schema and --run-folder exclude each other")
    if options.keys or options.schema:
        return (keys_command if options.keys else schema_command)(options, load)
    if options.config is None:
        raise UserError("config: name a configuration file, or ask for --keys or --schema")
    return settings_command(options, load, wants_color(sys.stdout))


def _data(options: argparse.Namespace, started: float) -> int:
    from llmkit.api import load
    from llmkit.data.building.prepare import prepare

    if options.json and options.action == "build" and not options.plan:
        raise UserError("data build: --json goes with --plan, for a build has only an exit code")
    loaded = load(options.config, options.overrides)
    config, tokenizer = loaded.config, None
    if options.rejects is not None:
        from llmkit.data.inspect_command import rejects_command

        rejects_command(config, options.rejects, options.json)
        return 0
    report = to_stderr if options.json else print
    begun = os.path.isdir(os.path.join(config.run.dir, config.run.name, "checkpoints"))
    if begun or config.data.tokenizer.type == "init_from":
        from llmkit.loop.run_tokenizer import tokenizer_of_folder

        tokenizer = tokenizer_of_folder(loaded, report)
    if options.plan:
        from llmkit.data.building.plan import plan_command

        plan_command(config.data, tokenizer, options.workers, options.json)
        return 0
    opened = partial(
        prepare, config.data, report, seed=config.run.seed, workers=options.workers, tokenizer=tokenizer
    )
    if options.action == "verify":
        from llmkit.data.verify_command import verify_command

        verify_command(opened, report, options.json)
        return 0
    prepared = opened()
    if options.action == "inspect":
        from llmkit.data.inspect_command import inspect_command, rows_command

        color = options.color == "always" or (options.color == "auto" and wants_color(sys.stdout))
        if options.step is None and options.sample is None:
            inspect_command(config, prepared, options.count, color, options.json)
        else:
            _tell_of_other_rows(os.path.join(config.run.dir, config.run.name), options.step)
            rows_command(
                config, prepared, step=options.step, sample=options.sample, minutes=options.minutes,
                color=color, as_json=options.json, report=to_stderr,
            )  # fmt: skip
    return 0


def _tell_of_other_rows(folder: str, step: int | None) -> None:
    """Says where a run has left the order that follows from its settings, before `step`; None: anywhere."""
    from llmkit.monitor.record import RunRecord

    for event in RunRecord(Path(folder)).events:
        what, since = event.get("event"), event.get("to_step", event.get("step"))
        if what not in ("data_change", "rollback") or type(since) is not int:
            continue
        if step is None or since < step:
            how = "went on with other data" if what == "data_change" else "went back and left out rows"
            to_stderr(
                f"data: the run in {folder} {how} after step {since:,}: its rows behind that are others than "
                "those of these settings, which are shown"
            )


def _reference(options: argparse.Namespace, started: float) -> int:
    from llmkit.api import load
    from llmkit.loop.run_tokenizer import tokenizer_of_folder
    from llmkit.preference.command import reference_command

    loaded = load(options.config, options.overrides)
    return reference_command(loaded, os.environ, lambda report: tokenizer_of_folder(loaded, report))


def _doctor(options: argparse.Namespace, started: float) -> int:
    for option in ("parity", "calibrate"):
        if options.json and getattr(options, option) not in (False, None):
            raise UserError(f"doctor: --{option} goes without --json")
    if options.parity:
        from llmkit.parity.command import parity_command

        return parity_command(options.all, os.environ)
    if options.all:
        raise UserError("doctor: --all goes with --parity")
    if options.calibrate is not None:
        from llmkit.calibration.command import calibrate_command

        return calibrate_command(options.calibrate, options.full, os.environ)
    from llmkit.doctor.command import doctor_command

    return doctor_command(options, os.environ)


def _new(options: argparse.Namespace, started: float) -> int:
    from llmkit.recipes.new import new_command

    return new_command(options)


def _ladder(options: argparse.Namespace, started: float) -> int:
    from llmkit.recipes.ladder import ladder_command

    return ladder_command(Path(options.folder), as_json=options.json)


def _plan(options: argparse.Namespace, started: float) -> int:
    from llmkit.api import load
    from llmkit.planner.command import plan_command

    return plan_command(options, load)


def _submit(options: argparse.Namespace, started: float) -> int:
    from llmkit.api import load
    from llmkit.cluster.submit import submit_command

    return submit_command(options, load, os.environ)


def _jobs(options: argparse.Namespace, started: float) -> int:
    from llmkit.cluster.jobs import jobs_command

    return jobs_command(options)


def _completion(options: argparse.Namespace, started: float) -> int:
    print(shell_code(options.shell), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="llmkit", description="Trains, fine-tunes and uses GPT-style language models."
    )
    parser.add_argument("--version", action="version", version=f"llmkit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _train_parser, _new_parser, _config_parser, _plan_parser, _data_parser, _reference_parser,
        _ladder_parser,
        add_generate_command, add_evaluate_command, add_serve_command, add_inspect_command,
        add_import_command, add_export_command,
        add_runs_command, add_top_command, add_report_command, add_checkpoint_command, add_sync_command,
        _doctor_parser, _submit_parser, _jobs_parser, add_launch_files_command, _completion_parser,
    ):  # fmt: skip
        add(commands)
    return parser


def _train_parser(commands: Commands) -> None:
    train = commands.add_parser("train", help="train; goes on from the newest good checkpoint by itself")
    add_config(train)
    train.add_argument("--fresh", action="store_true", help="refuse a run folder that has checkpoints")
    train.add_argument(
        "--allow-data-change",
        action="store_true",
        help="go on although the data, or the weights of the sources, are others than before",
    )
    train.add_argument(
        "--quiet", action="store_true", help="show errors, the end, and where the log is, and nothing else"
    )
    train.add_argument(
        "--take-over", action="store_true", help="ask another process that has this run to stop, then go on"
    )
    train.add_argument(
        "--anyway", action="store_true", help="start although a step cannot fit into memory by estimate"
    )
    add_branch(train)
    train.set_defaults(command=_train, parser=train)


def _config_parser(commands: Commands) -> None:
    config = commands.add_parser("config", help="print the resolved settings and where each came from")
    add_config(config, nargs="?")
    config.add_argument(
        "--keys",
        action="store_true",
        help="print all settings with their meaning instead, or only the settings and sections named; "
        "after a CONFIG, those of its plugins too",
    )
    config.add_argument(
        "--schema",
        action="store_true",
        help="print a JSON schema of configurations, for editors; after a CONFIG, with its plugins' settings",
    )
    add_json(config, "print JSON: settings, origins and plan, or keys, or the run folder")
    config.add_argument("--run-folder", action="store_true", help="check all of it, and print the run folder")
    config.set_defaults(command=_config, parser=config)


def _plan_parser(commands: Commands) -> None:
    plan = commands.add_parser("plan", help="what fits, how fast, how long and at what cost, without a GPU")
    add_plan_options(plan)
    plan.set_defaults(command=_plan, parser=plan)


def _data_parser(commands: Commands) -> None:
    data = commands.add_parser("data", help="build, verify or look at the token shards of a configuration")
    actions = data.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    for name, what in (
        ("build", "tokenize the sources into shards"),
        ("verify", "check every checksum of the shards"),
        ("inspect", "show figures of the sources, and rows as the model sees them"),
    ):
        action = actions.add_parser(name, help=what)
        add_config(action)
        action.add_argument("--workers", type=positive, help="processes that tokenize; default: all cores")
        action.set_defaults(command=_data, parser=action, plan=False, rejects=None, json=False)
        if name == "build":
            action.add_argument(
                "--plan",
                action="store_true",
                help="only say sizes, tokens, time and disk beforehand",
            )
            add_json(action, "with --plan: as JSON")
        if name == "verify":
            add_json(action)
        if name == "inspect":
            _add_inspect_options(action)


def _add_inspect_options(action: argparse.ArgumentParser) -> None:
    what = action.add_mutually_exclusive_group()
    what.add_argument("--count", type=count, default=1, help="rows shown per source")
    what.add_argument("--step", type=positive, metavar="N", help="show the rows of step N of the run")
    what.add_argument("--sample", type=count, metavar="POSITION", help="show the row at this position")
    what.add_argument(
        "--rejects", type=Path, metavar="FILE", help="write the records that cannot be read, a JSON line each"
    )
    action.add_argument(
        "--minutes",
        type=positive,
        default=5,
        help="how long live sources may be tokenized for --step or --sample; default: 5",
    )
    add_json(action, "print JSON")
    action.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto",
        help="of tokens; auto: on a terminal, without NO_COLOR",
    )  # fmt: skip


def _reference_parser(commands: Commands) -> None:
    reference = commands.add_parser(
        "reference", help="what the reference model gives for pairs of answers, before training on them"
    )
    add_config(reference)
    reference.set_defaults(command=_reference, parser=reference)


def _doctor_parser(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor", help="what this machine has, and what is wrong; --parity: do all layouts train alike"
    )
    doctor.add_argument("--parity", action="store_true", help="compare layouts with one process, in a table")
    doctor.add_argument("--all", action="store_true", help="with --parity: many more of them")
    add_doctor_options(doctor)
    doctor.set_defaults(command=_doctor, parser=doctor)


def _submit_parser(commands: Commands) -> None:
    submit = commands.add_parser("submit", help="submit a run to SLURM, after checking all of it")
    add_submit_options(submit)
    submit.set_defaults(command=_submit, parser=submit)


def _jobs_parser(commands: Commands) -> None:
    jobs = commands.add_parser("jobs", help="your llmkit jobs in SLURM's queue, each with its run")
    add_jobs_options(jobs)
    jobs.set_defaults(command=_jobs, parser=jobs)


def _new_parser(commands: Commands) -> None:
    new = commands.add_parser("new", help="write a compute-optimal configuration, from one number")
    add_new_options(new)
    new.set_defaults(command=_new, parser=new)


def _ladder_parser(commands: Commands) -> None:
    ladder = commands.add_parser("ladder", help="predict a loss from the smaller runs of `new --ladder`")
    add_ladder_options(ladder)
    ladder.set_defaults(command=_ladder, parser=ladder)


def _completion_parser(commands: Commands) -> None:
    completion = commands.add_parser("completion", help="print what a shell needs to complete llmkit's words")
    add_completion_options(completion)
    completion.set_defaults(command=_completion, parser=completion)
