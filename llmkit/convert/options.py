"""The command lines of `llmkit import` and `llmkit export`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from llmkit.checkpoints.run_argument import weights_at
from llmkit.command_line import Commands, add_json, add_weights
from llmkit.errors import UserError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_import_command(commands: Commands) -> None:
    """Adds `llmkit import`."""
    parser = commands.add_parser("import", help="make a checkpoint of a model in Hugging Face's format")
    parser.add_argument("source", metavar="HF_DIR", help="a folder with config.json and safetensors files")
    parser.add_argument("out", metavar="OUT", help="the checkpoint, a folder that must not exist")
    parser.add_argument(
        "--upcycle", type=_experts, metavar="EXPERTS",
        help="make a mixture of so many experts, copies of the MLP; HF_DIR may also be a run or a checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--experts-per-token", type=_experts, metavar="N", help="with --upcycle: default 2, or 1 of 1"
    )
    add_json(parser)
    parser.set_defaults(command=_import, parser=parser)


def add_export_command(commands: Commands) -> None:
    """Adds `llmkit export`."""
    parser = commands.add_parser("export", help="write a model in Hugging Face's format, and prove it")
    add_weights(parser)
    parser.add_argument("out", metavar="OUT", help="a folder that must not exist")
    parser.add_argument(
        "--dtype", choices=["bf16", "fp16", "fp32"], help="round the weights to this type; default: as stored"
    )
    parser.add_argument(
        "--max-shard-size", type=_size, default=_size("5GB"), metavar="SIZE", help="of a file; default: 5GB"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare the logits of transformers with llmkit's"
    )
    parser.add_argument(
        "--adapter", action="store_true", help="write the adapters of a run alone, as a folder of PEFT"
    )
    parser.add_argument(
        "--base", metavar="HF_DIR", help="with --adapter: the base model, where that is not what the run read"
    )
    add_json(parser)
    parser.set_defaults(command=_export, parser=parser)


def _import(options: argparse.Namespace, started: float) -> int:
    if options.experts_per_token and not options.upcycle:
        raise UserError("import: --experts-per-token is for --upcycle; leave it out")
    from llmkit.convert.importing import import_command

    per_token = options.experts_per_token or min(2, options.upcycle or 2)
    return import_command(
        Path(options.source), Path(options.out), options.upcycle, per_token, as_json=options.json
    )


def _export(options: argparse.Namespace, started: float) -> int:
    if options.adapter and options.dtype:
        raise UserError("export: --dtype is for a model, adapters are fp32; leave it or --adapter out")
    if options.base and not options.adapter:
        raise UserError("export: --base is for --adapter; leave it out")
    run = weights_at(options.run, os.environ)
    if options.adapter:
        from llmkit.convert.adapter import export_adapter_command

        base = Path(options.base) if options.base else None
        return export_adapter_command(
            run, Path(options.out), base=base, check=not options.no_check, ema=options.ema,
            as_json=options.json,
        )  # fmt: skip
    from llmkit.convert.export import export_command

    return export_command(
        run,
        Path(options.out),
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        check=not options.no_check,
        ema=options.ema,
        as_json=options.json,
    )


def _experts(text: str) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of experts, such as 8")
    return number


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(KB|MB|GB)", text.strip().upper(), re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no size such as 500MB or 5GB")
    return size
