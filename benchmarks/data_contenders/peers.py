"""litdata, MosaicML streaming and grain over token blocks; they live in an environment of their own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_contenders import Contender, Open, Pair
from benchmarks.data_corpus import ROWS, WIDTH, blocks, stream


def write_litdata(corpus: Path, place: Path) -> None:
    """Chunks of int32 tokens without headers."""
    from litdata import TokensLoader, optimize

    tokens = stream(corpus)
    pieces = [(str(corpus), first) for first in range(0, tokens.size, PIECE)]
    optimize(
        fn=_piece, inputs=pieces, output_dir=str(place / "chunks"), num_workers=1, chunk_bytes="64MB",
        item_loader=TokensLoader(block_size=WIDTH),
    )  # fmt: skip


PIECE = WIDTH * 512


def _piece(where: tuple[str, int]) -> torch.Tensor:
    corpus, first = where
    return torch.from_numpy(stream(Path(corpus))[first : first + PIECE].astype(np.int32))


def load_litdata(workers: int, corpus: Path, place: Path) -> Open:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    def batches() -> Iterator[Pair]:
        data = StreamingDataset(
            str(place / "chunks"), item_loader=TokensLoader(block_size=WIDTH), shuffle=True, drop_last=True
        )
        yield from _pairs(StreamingDataLoader(data, batch_size=ROWS, num_workers=workers))

    return batches


def write_mds(corpus: Path, place: Path) -> None:
    """MDS shards of uint16 blocks, of the default size."""
    from streaming import MDSWriter

    with MDSWriter(out=str(place / "shards"), columns={"tokens": f"ndarray:uint16:{WIDTH}"}) as writer:
        for row in blocks(corpus):
            writer.write({"tokens": np.asarray(row)})


def load_mds(workers: int, corpus: Path, place: Path) -> Open:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    def batches() -> Iterator[Pair]:
        clean_stale_shared_memory()
        data = StreamingDataset(local=str(place / "shards"), shuffle=True, batch_size=ROWS)
        loader = DataLoader(data, batch_size=ROWS, num_workers=workers, collate_fn=_collate)
        yield from _pairs(loader)

    return batches


def _collate(samples: list[dict[str, np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int32))


class Rows:
    """A flat file of tokens as blocks by number, which is what grain reads."""

    def __init__(self, corpus: str) -> None:
        self._rows = blocks(Path(corpus))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> np.ndarray:
        return self._rows[number].astype(np.int32)


def load_grain(threads: int, corpus: Path, place: Path) -> Open:
    import grain

    def batches() -> Iterator[Pair]:
        data = grain.MapDataset.source(Rows(str(corpus))).shuffle(seed=0).batch(ROWS)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 if threads else 0)
        yield from _pairs(map(torch.from_numpy, data.to_iter_dataset(options)))

    return batches


def _pairs(batches: Any) -> Iterator[Pair]:
    for batch in batches:
        yield batch[:, :-1], batch[:, 1:]


CONTENDERS = {
    "litdata": Contender(
        "litdata TokensLoader", "reading", "litdata chunks, int32", "chunks, and inside of them",
        write_litdata, partial(load_litdata, 0), ("litdata",), peer=True,
    ),
    "mds": Contender(
        "mosaicml-streaming", "reading", "MDS, uint16", "py1e (its default)",
        write_mds, partial(load_mds, 0), ("streaming",), peer=True,
    ),
    "grain": Contender(
        "grain map + shuffle + batch", "reading", "tokens.bin", "global", None,
        partial(load_grain, 0), ("grain",), peer=True,
    ),
}  # fmt: skip
