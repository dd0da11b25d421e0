"""The command line of `llmkit evaluate`."""

from __future__ import annotations

import argparse
import os

from llmkit.checkpoints.run_argument import weights_at
from llmkit.command_line import Commands, add_run, count, positive, unicode_text
from llmkit.errors import UserError

WITH_TASKS = (
    "include_path", "num_fewshot", "limit", "apply_chat_template", "system", "samples", "output",
)  # fmt: skip
"""Options that mean something with --tasks only."""
WITH_NEEDLE = ("lengths", "depths", "trials", "digits", "filler", "seed", "plot")
"""Options that mean something with --needle only."""
MOST_DIGITS = 10
"""All are different."""


def add_evaluate_command(commands: Commands) -> None:
    """Adds `llmkit evaluate`."""
    evaluate = commands.add_parser(
        "evaluate",
        help="held-out loss, perplexity and bits per byte; --tasks: benchmarks of lm-eval; --needle: whether "
        "it finds a number in long texts",
    )
    add_run(evaluate)
    evaluate.add_argument(
        "--data",
        metavar="CONFIG_OR_PATH",
        help="evaluate what this configuration holds out, or all of this text, jsonl, parquet or shards, "
        "instead of what the run held out",
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    evaluate.add_argument(
        "--tensor-parallel", type=positive, metavar="N", default=1,
        help="processes that share one model, of those that torchrun started; the others have copies",
    )  # fmt: skip
    evaluate.add_argument(
        "--batch-size", type=positive, metavar="N",
        help="with --tasks or --needle: rows at once; default: by memory",
    )  # fmt: skip
    _add_needle(evaluate)
    tasks = evaluate.add_argument_group("tasks of EleutherAI's lm-eval (pip install 'llmkit[eval]')")
    tasks.add_argument("--tasks", metavar="NAME,NAME", help="tasks, groups or patterns such as 'arc_*'")
    tasks.add_argument("--include-path", metavar="FOLDER", help="tasks of your own, as YAML files")
    tasks.add_argument("--num-fewshot", type=count, metavar="N", help="default: as each task says")
    tasks.add_argument("--limit", type=positive, metavar="N", help="only the first N questions of each task")
    tasks.add_argument("--apply-chat-template", action="store_true", help="put the questions as chats")
    tasks.add_argument("--system", metavar="TEXT", help="with --apply-chat-template: the system's message")
    tasks.add_argument("--output", metavar="FILE", help="also write lm-eval's results there, as JSON")
    tasks.add_argument("--samples", action="store_true", help="the results hold every question and answer")
    evaluate.set_defaults(command=_evaluate, parser=evaluate)


def _add_needle(evaluate: argparse.ArgumentParser) -> None:
    needle = evaluate.add_argument_group("needle test (docs/long-context.md)")
    needle.add_argument(
        "--needle", action="store_true", help="ask for a number that stands at some depth of a long text"
    )
    needle.add_argument(
        "--lengths", type=_lengths, metavar="N,N", default=(),
        help="tokens of the texts; default: all that the model can read, a half, a quarter and an eighth",
    )  # fmt: skip
    needle.add_argument(
        "--depths", type=_depths, metavar="PERCENT,PERCENT", default=(0.0, 0.25, 0.5, 0.75, 1.0),
        help="where the number stands; default: 0,25,50,75,100",
    )  # fmt: skip
    needle.add_argument(
        "--trials", type=positive, metavar="N", default=10,
        help="texts for each length and depth; default: 10",
    )  # fmt: skip
    needle.add_argument(
        "--digits", type=_digits, metavar="N", default=5,
        help="of the number, at most 10, all different; default: 5",
    )  # fmt: skip
    needle.add_argument("--filler", metavar="FILE", help="a text whose sentences stand around the number")
    needle.add_argument("--seed", type=count, metavar="N", default=0, help="of the numbers; default: 0")
    needle.add_argument("--plot", metavar="FILE.svg", help="also draw the table there")


def _digits(text: str) -> int:
    return count(text, least=1, most=MOST_DIGITS)


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


def _depths(text: str) -> tuple[float, ...]:
    try:
        percents = {float(part) for part in text.split(",")}
    except ValueError:
        percents = {-1.0}
    if not all(0.0 <= percent <= 100.0 for percent in percents):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} are no percents from 0 to 100 with commas between")
    return tuple(sorted(percent / 100 for percent in percents))


def _given(options: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Those of the options that are there, as they are written."""
    default = options.parser.get_default
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != default(name)]


def _evaluate(options: argparse.Namespace, started: float) -> int:
    if options.tasks is None and (given := _given(options, WITH_TASKS)):
        raise UserError(f"evaluate: {given[0]} goes with --tasks")
    if not options.needle and (given := _given(options, WITH_NEEDLE)):
        raise UserError(f"evaluate: {given[0]} goes with --needle")
    if options.needle:
        return _evaluate_needle(options)
    if options.tasks is None:
        if options.batch_size is not None:
            raise UserError("evaluate: --batch-size goes with --tasks or --needle")
        run = weights_at(options.run, os.environ)
        from llmkit.inference import evaluate_command

        return evaluate_command(
            run, precision=options.precision, other=options.data, as_json=options.json,
            tensor_size=options.tensor_parallel, ema=options.ema,
        )  # fmt: skip
    if options.data is not None:
        raise UserError("evaluate: --tasks bring their own data; leave out --data")
    if options.system is not None and not options.apply_chat_template:
        raise UserError("evaluate: --system goes with --apply-chat-template")
    if options.samples and options.output is None:
        raise UserError("evaluate: --samples go to the file of --output; name one")
    system = None if options.system is None else unicode_text("evaluate", "--system", options.system)
    names = tuple(name.strip() for name in options.tasks.split(",") if name.strip())
    if not names:
        raise UserError("evaluate: --tasks names none")
    run = weights_at(options.run, os.environ)
    from llmkit.evaluation.command import tasks_command
    from llmkit.evaluation.harness import Tasks

    tasks = Tasks(
        names, options.include_path, options.num_fewshot, options.limit,
        apply_chat_template=options.apply_chat_template, system=system, samples=options.samples,
    )  # fmt: skip
    return tasks_command(
        run, tasks, precision=options.precision, rows=options.batch_size,
        tensor_size=options.tensor_parallel, output=options.output, as_json=options.json, ema=options.ema,
    )  # fmt: skip


def _evaluate_needle(options: argparse.Namespace) -> int:
    for name in ("tasks", "data"):
        if getattr(options, name) is not None:
            raise UserError(f"evaluate: --needle makes texts of its own; leave out --{name}")
    run = weights_at(options.run, os.environ)
    from llmkit.evaluation.haystack import FILLER
    from llmkit.evaluation.needle import NeedleTest
    from llmkit.evaluation.needle_command import needle_command, read_filler

    filler = FILLER if options.filler is None else read_filler(options.filler)
    test = NeedleTest(
        options.lengths, options.depths, options.trials, options.digits, filler, options.seed
    )
    return needle_command(
        run, test, precision=options.precision, rows=options.batch_size,
        tensor_size=options.tensor_parallel, picture=options.plot, as_json=options.json, ema=options.ema,
    )  # fmt: skip
