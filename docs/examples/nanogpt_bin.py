"""Makes a source for llmkit of a nanoGPT train.bin: python nanogpt_bin.py train.bin ids [END_OF_TEXT]

A .bin is one long row of 16-bit token ids, with an end-of-text behind each document. This writes the
documents as a parquet file with a column `input_ids`, for `{type: parquet, path: ids, record: ids}`.
END_OF_TEXT is 50256, GPT-2's, by default. Memory is that of a piece of the file and of 10,000 documents.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PIECE = 2**24  # ids read at a time


def documents(path: str, end_of_text: int, piece: int = PIECE) -> Iterator[np.ndarray]:
    """The ids of each document, (length,) uint16, without its end-of-text; empty ones are left out."""
    ids = np.memmap(path, dtype=np.uint16, mode="r")
    begun = np.empty(0, np.uint16)
    for start in range(0, len(ids), piece):
        found = np.concatenate([begun, ids[start : start + piece]])
        *whole, begun = np.split(found, np.flatnonzero(found == end_of_text) + 1)
        yield from (each[:-1] for each in whole if len(each) > 1)
    if len(begun):
        yield begun


def main(path: str, folder: str, end_of_text: str = "50256") -> None:
    """Writes FOLDER/ids.parquet, a row group for each 10,000 documents."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("input_ids", pa.list_(pa.uint16()))])
    with pq.ParquetWriter(f"{folder}/ids.parquet", schema) as file:
        rows: list[np.ndarray] = []
        for document in documents(path, int(end_of_text)):
            rows.append(document)
            if len(rows) == 10_000:
                file.write_table(pa.table({"input_ids": rows}, schema=schema))
                rows = []
        file.write_table(pa.table({"input_ids": rows}, schema=schema))


if __name__ == "__main__":
    main(*sys.argv[1:])
