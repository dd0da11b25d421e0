"""A flat file of tokens and random places in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.data_contenders import Contender, Open, Pair
from benchmarks.data_corpus import LENGTH, ROWS, WIDTH, stream


def load_nanogpt(corpus: Path, place: Path) -> Open:
    """As nanoGPT's training script does it: the file is mapped anew for each batch, int64 comes out."""

    def batches() -> Iterator[Pair]:
        generator = torch.Generator().manual_seed(0)
        while True:
            data = stream(corpus)
            starts = torch.randint(len(data) - LENGTH, (ROWS,), generator=generator).tolist()
            inputs = [torch.from_numpy(data[i : i + LENGTH].astype(np.int64)) for i in starts]
            labels = [torch.from_numpy(data[i + 1 : i + 1 + LENGTH].astype(np.int64)) for i in starts]
            yield torch.stack(inputs), torch.stack(labels)

    return batches


def load_plainest(corpus: Path, place: Path) -> Open:
    """The least that a random read can cost in numpy: mapped once, each row copied once, int32."""

    def batches() -> Iterator[Pair]:
        data, generator = np.asarray(stream(corpus)), np.random.default_rng(0)
        while True:
            rows = np.empty((ROWS, WIDTH), dtype=np.int32)
            for row, start in zip(rows, generator.integers(len(data) - LENGTH, size=ROWS).tolist()):
                row[:] = data[start : start + WIDTH]
            tensor = torch.from_numpy(rows)
            yield tensor[:, :-1], tensor[:, 1:]

    return batches


ORDER = "random places, with repetition"
CONTENDERS = {
    "memmap": Contender("nanoGPT's memmap", "reading", "tokens.bin", ORDER, None, load_nanogpt),
    "memmap-once": Contender("memmap, mapped once", "reading", "tokens.bin", ORDER, None, load_plainest),
}
