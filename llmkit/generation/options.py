"""The command line of `llmkit generate`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llmkit.checkpoints.run_argument import weights_at
from llmkit.command_line import Commands, add_run, count, positive, unicode_text
from llmkit.errors import UserError


def add_generate_command(commands: Commands) -> None:
    """Adds `llmkit generate`."""
    parser = commands.add_parser(
        "generate", help="continue texts, answer questions, or talk, with a trained model"
    )
    add_run(parser)
    _add_prompts(parser)
    _add_sampling(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each answer")
    parser.add_argument(
        "--logprobs",
        type=count,
        metavar="N",
        help="with --json: log-probability of each token, and the N likeliest tokens",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="answers made at once; default: 16"
    )
    parser.add_argument(
        "--tensor-parallel",
        type=positive,
        metavar="N",
        help="processes that share one model; default: all that torchrun started",
    )
    parser.add_argument("--no-cache", action="store_true", help="compute every position anew for each token")
    parser.set_defaults(command=_generate, parser=parser)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to continue; may be given several times",
    )
    parser.add_argument(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="a prompt a line; of a .jsonl, objects with prompt, or with messages for --chat",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="ask the assistant, by the model's chat template; without a prompt, a conversation",
    )
    parser.add_argument("--system", metavar="TEXT", help="with --chat: the system's message")
    parser.add_argument(
        "--control-tokens", action="store_true", help="control tokens that the prompt spells are meant"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-new-tokens", type=positive, default=200, metavar="N", help="most tokens of an answer"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="ends an answer; may be given several times",
    )
    parser.add_argument("--num-samples", type=positive, default=1, metavar="N", help="answers to each prompt")
    parser.add_argument(
        "--temperature", type=float, metavar="T", default=0.8, help="0 = always the likeliest token"
    )
    parser.add_argument(
        "--top-k", type=count, default=0, metavar="K", help="only the k likeliest tokens; 0 = all"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest tokens of this total probability",
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: less of what is there"
    )
    parser.add_argument(
        "--seed",
        type=count,
        default=0,
        metavar="N",
        help="of the first answer to each prompt; of the next one, 1 more",
    )


def _generate(options: argparse.Namespace, started: float) -> int:
    _check(options)

    def text(option: str, given: str) -> str:
        return unicode_text("generate", option, given)

    prompts = [text("--prompt", prompt) for prompt in options.prompt]
    stops = tuple(text("--stop", stop) for stop in options.stop)
    system = None if options.system is None else text("--system", options.system)
    run = weights_at(options.run, os.environ)
    from llmkit.generation.command import Wanted, converse_command, generate_command
    from llmkit.generation.sampling import Sampling

    wanted = Wanted(
        run=run,
        sampling=Sampling(
            options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed
        ),
        max_new_tokens=options.max_new_tokens,
        stops=stops,
        system=system,
        precision=options.precision,
        use_cache=not options.no_cache,
        tensor_parallel=options.tensor_parallel,
        ema=options.ema,
    )
    if not prompts and options.prompt_file is None:
        return converse_command(wanted)
    return generate_command(
        wanted, prompts, options.prompt_file, chat=options.chat, control_tokens=options.control_tokens,
        samples=options.num_samples, batch_size=options.batch_size, as_json=options.json,
        logprobs=options.logprobs,
    )  # fmt: skip


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for options that contradict each other."""
    talk = not options.prompt and options.prompt_file is None
    if talk and not options.chat:
        raise UserError("generate: say what to continue with --prompt or --prompt-file, or talk with --chat")
    if options.system is not None and not options.chat:
        raise UserError("generate: --system goes with --chat")
    if options.control_tokens and options.chat:
        raise UserError(
            "generate: with --chat the chat template writes the control tokens; leave out one of both"
        )
    if options.temperature == 0 and (options.top_k or options.top_p != 1.0):
        raise UserError(
            "generate: --temperature 0 always takes the likeliest token; leave out --top-k and --top-p"
        )
    if options.temperature == 0 and options.num_samples > 1:
        raise UserError(
            "generate: --temperature 0 gives the same answer each time; leave out --num-samples, or choose "
            "a temperature"
        )
    if options.logprobs is not None and not options.json:
        raise UserError("generate: --logprobs goes with --json")
    if talk and (options.json or options.num_samples > 1):
        raise UserError("generate: --json and --num-samples go with --prompt or --prompt-file")
    if "" in options.stop:
        raise UserError("generate: --stop is empty; give the text that ends an answer")
