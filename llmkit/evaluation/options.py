"""The command line of `llmkit evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmkit.command_line import Commands, add_run, count, positive, unicode_text
from llmkit.errors import UserError

WITH_TASKS = (
    "include_path", "num_fewshot", "limit", "apply_chat_template", "system", "samples", "batch_size",
    "output",
)  # fmt: skip
"""Options that mean something with --tasks only."""


def add_evaluate_command(commands: Commands) -> None:
    """Adds `llmkit evaluate`."""
    evaluate = commands.add_parser(
        "evaluate", help="held-out loss, perplexity and bits per byte; --tasks: benchmarks of lm-eval"
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
    tasks = evaluate.add_argument_group("tasks of EleutherAI's lm-eval (pip install 'llmkit[eval]')")
    tasks.add_argument("--tasks", metavar="NAME,NAME", help="tasks, groups or patterns such as 'arc_*'")
    tasks.add_argument("--include-path", metavar="FOLDER", help="tasks of your own, as YAML files")
    tasks.add_argument("--num-fewshot", type=count, metavar="N", help="default: as each task says")
    tasks.add_argument("--limit", type=positive, metavar="N", help="only the first N questions of each task")
    tasks.add_argument("--apply-chat-template", action="store_true", help="put the questions as chats")
    tasks.add_argument("--system", metavar="TEXT", help="with --apply-chat-template: the system's message")
    tasks.add_argument("--batch-size", type=positive, metavar="N", help="rows at once; default: by memory")
    tasks.add_argument("--output", metavar="FILE", help="also write lm-eval's results there, as JSON")
    tasks.add_argument("--samples", action="store_true", help="the results hold every question and answer")
    evaluate.set_defaults(command=_evaluate, parser=evaluate)


def _evaluate(options: argparse.Namespace, started: float) -> int:
    if options.tasks is None:
        given = [name for name in WITH_TASKS if getattr(options, name) != options.parser.get_default(name)]
        if given:
            raise UserError(f"evaluate: --{given[0].replace('_', '-')} goes with --tasks")
        from llmkit.inference import evaluate_command

        return evaluate_command(
            Path(options.run), precision=options.precision, other=options.data, as_json=options.json,
            tensor_size=options.tensor_parallel, ema=options.ema,
        )  # fmt: skip
    if options.data is not None:
        raise UserError("evaluate: --tasks bring their own data; leave out --data")
    if options.system is not None and not options.apply_chat_template:
        raise UserError("evaluate: --system goes with --apply-chat-template")
    if options.samples and options.output is None:
        raise UserError("evaluate: --samples go to the file of --output; name one")
    from llmkit.evaluation.command import tasks_command
    from llmkit.evaluation.harness import Tasks

    system = None if options.system is None else unicode_text("evaluate", "--system", options.system)
    names = tuple(name.strip() for name in options.tasks.split(",") if name.strip())
    if not names:
        raise UserError("evaluate: --tasks names none")
    tasks = Tasks(
        names, options.include_path, options.num_fewshot, options.limit,
        apply_chat_template=options.apply_chat_template, system=system, samples=options.samples,
    )  # fmt: skip
    return tasks_command(
        Path(options.run), tasks, precision=options.precision, rows=options.batch_size,
        tensor_size=options.tensor_parallel, output=options.output, as_json=options.json, ema=options.ema,
    )  # fmt: skip
