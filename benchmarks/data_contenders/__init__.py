"""The loaders that the data benchmark compares: llmkit's and its peers.

A contender writes the corpus in the format that suits it best, and gives batches of it: 16 rows of 2048
inputs and as many labels, as tensors of int32 or int64 on the host.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Inputs and labels, (rows, length) each."""
Open = Callable[[], Iterator[Pair]]
"""Opens the data and gives batches; what happens before the first one counts as its latency."""


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    data: name of the data set; contenders of the same data share it. order: how it shuffles. write(corpus,
    place): writes it from the folder of the corpus into another; None if the corpus itself is read.
    load(corpus, place): imports the libraries, which is not timed. needs: modules that must be installed.
    peer: runs in the environment of the peers.
    """

    name: str
    kind: Literal["reading", "live", "size"]
    data: str
    order: str
    write: Callable[[Path, Path], None] | None
    load: Callable[[Path, Path], Open]
    needs: tuple[str, ...] = ()
    peer: bool = False


MODULES = {
    "own": ("own", "own-masks", "own-live", "own-live-2", "own-live-zst", "own-1x", "own-10x"),
    "plain": ("memmap", "memmap-once"),
    "hugging_face": (
        "hf-parquet", "hf-parquet-arrow", "hf-arrow", "hf-arrow-shuffled",
        "hf-live-tokenizers", "hf-live-tiktoken", "hf-live-tiktoken-2",
    ),
    "peers": ("litdata", "mds", "grain"),
}  # fmt: skip
"""Module of this package: the keys of its contenders."""

NAMES = tuple(key for keys in MODULES.values() for key in keys)


def find(key: str) -> Contender:
    """The contender of that key; imports only the module that has it."""
    module = next(name for name, keys in MODULES.items() if key in keys)
    return importlib.import_module(f"benchmarks.data_contenders.{module}").CONTENDERS[key]
