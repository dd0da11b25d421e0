"""Hugging Face datasets in streaming mode: token blocks, and text tokenized on the fly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data_contenders import Contender, Open, Pair
from benchmarks.data_corpus import END_OF_TEXT, PARTS, ROWS, WIDTH, blocks, read_facts
from llmkit.data.tokens.tokenizer_json import byte_symbols

BUFFER = 1000
"""Rows, or documents, of the shuffle buffer."""
PARQUET_FILES, ROW_GROUP = 128, 128
"""Files, and rows of a row group. The library reads many files at once, and much of each ahead: with few
files or large groups nearly all of the data would have been read before the window opens."""
RECORD_BATCH = 1000
"""Rows; the library's own default."""
GROUP = 64
"""Documents tokenized at a time."""

Encode = Callable[[Sequence[str]], Iterable[Sequence[int]]]


def write_parquet(corpus: Path, place: Path) -> None:
    """Lists of int32, compressed as is usual."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part, rows in enumerate(_parts(corpus, PARQUET_FILES)):
        offsets = pa.array(np.arange(0, rows.size + 1, WIDTH, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, pa.array(rows.astype(np.int32).ravel()))
        table = pa.table({"tokens": lists})
        pq.write_table(table, place / f"part-{part:03}.parquet", row_group_size=ROW_GROUP)


def write_fixed_parquet(corpus: Path, place: Path) -> None:
    """The leanest parquet: lists of one length, uint16, no compression, no dictionary."""
    import pyarrow.parquet as pq

    for part, rows in enumerate(_parts(corpus, PARQUET_FILES)):
        path = place / f"part-{part:03}.parquet"
        table = _fixed_table(rows)
        pq.write_table(table, path, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)


def write_arrow(corpus: Path, place: Path) -> None:
    """Arrow streams of lists of one length, uint16."""
    import pyarrow as pa

    for part, rows in enumerate(_parts(corpus, PARTS)):
        table = _fixed_table(rows)
        path = str(place / f"part-{part:02}.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=RECORD_BATCH)


def _parts(corpus: Path, count: int) -> Iterator[np.ndarray]:
    rows = blocks(corpus)
    for part in range(count):
        yield rows[part::count]


def _fixed_table(rows: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), WIDTH)})


def load_blocks(kind: str, arrow: bool, shuffled: bool, corpus: Path, place: Path) -> Open:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import load_dataset

    def batches() -> Iterator[Pair]:
        files = sorted(str(path) for path in place.iterdir())
        data = load_dataset(kind, data_files=files, split="train", streaming=True)
        if shuffled:
            data = data.shuffle(seed=0, buffer_size=BUFFER)
        for batch in data.with_format("arrow" if arrow else "numpy").iter(ROWS, drop_last_batch=True):
            column = batch["tokens"]
            tokens = column.combine_chunks().flatten().to_numpy() if arrow else np.asarray(column)
            yield _pair(tokens.reshape(ROWS, WIDTH))

    return batches


def _pair(tokens: np.ndarray) -> Pair:
    """Inputs and labels as views of one tensor; uint16, which embeddings do not take, becomes int32."""
    tensor = torch.from_numpy(tokens if tokens.dtype in (np.int32, np.int64) else tokens.astype(np.int32))
    return tensor[:, :-1], tensor[:, 1:]


def write_text(corpus: Path, place: Path) -> None:
    """A parquet file with a column of text for each part."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted((corpus / "text").iterdir()):
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        pq.write_table(pa.table({"text": texts}), place / f"{path.stem}.parquet", row_group_size=1000)


def load_live(encoder: Callable[[Path], Encode], workers: int, corpus: Path, place: Path) -> Open:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import tiktoken  # noqa: F401
    import tokenizers  # noqa: F401
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    def batches() -> Iterator[Pair]:
        files = sorted(str(path) for path in place.iterdir())
        data = load_dataset("parquet", data_files=files, split="train", streaming=True)
        packed = Packed(data.shuffle(seed=0, buffer_size=BUFFER), encoder, corpus)
        for batch in DataLoader(packed, batch_size=None, num_workers=workers):
            yield batch[:, :-1], batch[:, 1:]

    return batches


class Packed(torch.utils.data.IterableDataset):
    """Documents and their end-of-text one after the other, cut into batches; nothing is lost between."""

    def __init__(self, data: Any, encoder: Callable[[Path], Encode], corpus: Path) -> None:
        self.data, self.encoder, self.corpus = data, encoder, corpus

    def __iter__(self) -> Iterator[torch.Tensor]:
        encode = self.encoder(self.corpus)
        end = np.array([read_facts(self.corpus).end_of_text_id], dtype=np.int32)
        waiting, held = [end], 1
        for group in self.data.iter(GROUP):
            for ids in encode(group["text"]):
                waiting += [np.asarray(ids, dtype=np.int32), end]
                held += len(ids) + 1
            while held >= ROWS * WIDTH:
                tokens = np.concatenate(waiting)
                waiting, held = [tokens[ROWS * WIDTH :]], held - ROWS * WIDTH
                yield torch.from_numpy(tokens[: ROWS * WIDTH].reshape(ROWS, WIDTH))


def hf_tokenizers(corpus: Path) -> Encode:
    """The library's fastest call; it spreads a batch over the cores."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(corpus / "tokenizer" / "tokenizer.json"))

    def encode(texts: Sequence[str]) -> Iterator[list[int]]:
        return (each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False))

    return encode


def tiktoken_encoder(corpus: Path) -> Encode:
    """The same vocabulary in tiktoken; one thread."""
    import json

    import tiktoken

    spec = json.loads((corpus / "tokenizer" / "tokenizer.json").read_text())
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    ranks = {
        bytes(byte_of[symbol] for symbol in token): number
        for token, number in spec["model"]["vocab"].items()
        if token != END_OF_TEXT
    }
    pieces = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    encoding = tiktoken.Encoding("corpus", pat_str=pieces, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: map(encoding.encode_to_numpy, texts)


NEEDS = ("datasets", "pyarrow")
LIVE = (*NEEDS, "tokenizers", "tiktoken")
BUFFERED = f"order of the files, buffer of {BUFFER}"
CONTENDERS = {
    "hf-parquet": Contender(
        "HF datasets, parquet, numpy", "reading", "parquet, lists of int32, snappy", BUFFERED,
        write_parquet, partial(load_blocks, "parquet", False, True), NEEDS,
    ),
    "hf-parquet-arrow": Contender(
        "HF datasets, lean parquet, Arrow batches", "reading", "parquet, fixed lists of uint16", BUFFERED,
        write_fixed_parquet, partial(load_blocks, "parquet", True, True), NEEDS,
    ),
    "hf-arrow": Contender(
        "HF datasets, Arrow `.iter`, in file order", "reading", "Arrow, fixed lists of uint16", "none",
        write_arrow, partial(load_blocks, "arrow", True, False), NEEDS,
    ),
    "hf-arrow-shuffled": Contender(
        "HF datasets, Arrow `.iter`, shuffled", "reading", "Arrow, fixed lists of uint16", BUFFERED,
        write_arrow, partial(load_blocks, "arrow", True, True), NEEDS,
    ),
    "hf-live-tokenizers": Contender(
        "HF streaming + tokenizers + packing", "live", "parquet, text", BUFFERED,
        write_text, partial(load_live, hf_tokenizers, 0), LIVE,
    ),
    "hf-live-tiktoken": Contender(
        "HF streaming + tiktoken + packing", "live", "parquet, text", BUFFERED,
        write_text, partial(load_live, tiktoken_encoder, 0), LIVE,
    ),
    "hf-live-tiktoken-2": Contender(
        "the same, 2 workers", "live", "parquet, text", BUFFERED,
        write_text, partial(load_live, tiktoken_encoder, 2), LIVE,
    ),
}  # fmt: skip
