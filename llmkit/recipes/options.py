"""The command lines of `llmkit new` and `llmkit ladder`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
import math
import re

from llmkit.command_line import add_json

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def add_new_options(parser: argparse.ArgumentParser) -> None:
    """What `llmkit new` takes."""
    parser.add_argument("name", metavar="NAME", help="name of the run; NAME.yaml is written")
    dial = parser.add_mutually_exclusive_group(required=True)
    dial.add_argument("--depth", type=int, metavar="N", help="transformer blocks")
    dial.add_argument("--params", type=quantity, metavar="P", help="weights, such as 124m or 1b")
    dial.add_argument("--flops", type=quantity, metavar="F", help="floating-point operations, such as 1e19")
    dial.add_argument("--hours", type=quantity, metavar="H", help="of --device, --gpus of them")
    parser.add_argument("--device", metavar="NAME", help="such as h100, or cpu for this machine's")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="devices; default: 1")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="files, a folder, or a dataset of the hub; default: Python's own library",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        help="bpe (default), bpe:SIZE, bytes, a tokenizer.json, or a model of the hub",
    )
    parser.add_argument(
        "--sequence-length", type=int, metavar="N", help="tokens of a row; default: by the width"
    )
    parser.add_argument("--ladder", action="store_true", help="also four smaller runs that predict its loss")
    parser.add_argument("--out", default=".", metavar="FOLDER", help="where to write; default: here")
    parser.add_argument("--force", action="store_true", help="replace what was written before")


def add_ladder_options(parser: argparse.ArgumentParser) -> None:
    """What `llmkit ladder` takes."""
    parser.add_argument("folder", metavar="FOLDER", help="that `llmkit new --ladder` wrote")
    add_json(parser)


def quantity(text: str) -> float:
    """A positive number such as 124m, 1.5b or 1e19."""
    found = re.fullmatch(
        r"(\d{1,20}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,3})?)([kmbt]?)", text.strip(), re.IGNORECASE | re.ASCII
    )
    value = float(found[1]) * _UNITS[found[2].lower()] if found else math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no positive number such as 124m, 1.5b or 1e19")
    return value
