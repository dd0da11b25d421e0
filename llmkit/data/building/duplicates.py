"""Counts the documents of a source that are exact copies of others, in bounded memory."""

from __future__ import annotations

import tempfile
from array import array
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from xxhash import xxh64_intdigest

from llmkit.data.shards.documents import Documents

RUN = 1 << 22
"""Hashes that are sorted in memory at a time; longer sources put the sorted runs into a temporary file."""


class Copies(NamedTuple):
    """duplicates: documents with the tokens of an earlier one. heldout_in_train: held-out documents with the
    tokens of one that is trained on."""

    duplicates: int
    heldout_in_train: int


class DuplicateCounter:
    """Counts copies by 64-bit hashes of the documents' tokens; the lowest bit says that one is held out.

    Runs of RUN hashes are sorted and written to `folder`, 8 bytes a document. They are compared by ranges of
    hashes, of which each run gives about its share, so that memory stays at a few runs for any source. Among
    n documents n^2 / 2^64 pairs are expected to have one hash by chance: 0.05 among a billion.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._run, self._count = folder, array("Q"), 0
        self._file: BinaryIO | None = None
        self._sizes: list[int] = []

    def add(self, documents: Documents, heldout: bool) -> None:
        """Count documents, of which all are held out, or none."""
        tokens = documents.tokens.view(np.uint8).data
        ends = np.cumsum(documents.lengths) * documents.tokens.itemsize
        begin = 0
        for end in ends.tolist():
            self._run.append(xxh64_intdigest(tokens[begin:end]) & ~1 | heldout)
            begin = end
        if len(self._run) >= RUN:
            self._write_run()

    def count(self) -> Copies:
        """Copies among all that were added; nothing can be added afterwards."""
        if self._file is None:
            return _copies(np.array(self._run, np.uint64))
        self._write_run()
        self._file.flush()
        hashes = np.memmap(self._file, np.uint64, mode="r")
        runs = np.split(hashes, np.cumsum(self._sizes)[:-1])
        edges = [(k << 64) // len(runs) & ~1 for k in range(1, len(runs))]
        cuts = [[0, *np.searchsorted(run, np.array(edges, np.uint64)), run.size] for run in runs]
        found = [
            _copies(np.concatenate([run[cut[k] : cut[k + 1]] for run, cut in zip(runs, cuts, strict=True)]))
            for k in range(len(runs))
        ]
        self._file.close()
        return Copies(*(sum(counts) for counts in zip(*found, strict=True)))

    def _write_run(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        run = np.sort(np.array(self._run, np.uint64))
        self._file.write(run.data)
        self._sizes.append(run.size)
        self._run = array("Q")


def _copies(hashes: np.ndarray) -> Copies:
    keys, is_heldout = hashes >> np.uint64(1), (hashes & np.uint64(1)).astype(bool)
    in_train = int(np.isin(keys[is_heldout], keys[~is_heldout]).sum())
    return Copies(keys.size - np.unique(keys).size, in_train)
