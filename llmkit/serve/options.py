"""The command line of `llmkit serve`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from llmkit.checkpoints.run_argument import weights_at
from llmkit.command_line import Commands, add_run, count, positive


def add_serve_command(commands: Commands) -> None:
    """Adds `llmkit serve`."""
    parser = commands.add_parser("serve", help="answer other programs' requests, as OpenAI's API does")
    add_run(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    parser.add_argument("--port", type=_port, default=8000, help="default: 8000; 0 = any free one")
    parser.add_argument("--model-name", metavar="NAME", help="what clients call it; default: RUN's name")
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="most tokens of an answer that a client may ask for; default: what the model's context allows",
    )
    parser.add_argument(
        "--max-batch", type=positive, default=8, metavar="N", help="answers made at the same time; default: 8"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with the key that clients must send"
    )
    parser.set_defaults(command=_serve, parser=parser)


def _port(text: str) -> int:
    return count(text, most=65535)


def _serve(options: argparse.Namespace, started: float) -> int:
    run = weights_at(options.run, os.environ)
    from llmkit.serve.command import serve_command

    return serve_command(
        run, host=options.host, port=options.port, name=options.model_name,
        max_tokens=options.max_tokens, max_batch=options.max_batch, api_key_file=options.api_key_file,
        precision=options.precision, ema=options.ema,
    )  # fmt: skip
