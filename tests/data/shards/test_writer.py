from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmkit.data.shards.format import token_dtype
from llmkit.data.shards.reader import ShardReader
from llmkit.data.shards.writer import ShardWriter
from llmkit.errors import UserError


def test_a_stream_starts_with_end_of_text_and_has_it_after_every_document(
    write_shards: Callable[..., Path],
) -> None:
    reader = ShardReader(write_shards([[5, 6], [7], []]))
    assert reader.read(0, reader.tokens).tolist() == [0, 5, 6, 0, 7, 0, 0]


def test_a_vocabulary_takes_the_smallest_type_that_holds_it() -> None:
    assert [token_dtype(size) for size in (257, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


@pytest.mark.parametrize(
    ("vocab_size", "largest", "bytes_a_token"), [(65_536, 65_535, 2), (70_001, 70_000, 4)]
)
def test_the_largest_id_comes_back(
    write_shards: Callable[..., Path], vocab_size: int, largest: int, bytes_a_token: int
) -> None:
    folder = write_shards([[largest]], vocab_size=vocab_size)
    assert (folder / "toy-00000.bin").stat().st_size == 3 * bytes_a_token
    assert ShardReader(folder).read(1, 2).tolist() == [largest]


@pytest.mark.parametrize("wrong", [65_536, 70_000, -1])
def test_an_id_outside_the_vocabulary_is_refused_and_not_wrapped(
    write_shards: Callable[..., Path], wrong: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"toy: token id {wrong} in document 1 is not in 0 .. 65535"):
        write_shards([[1], [2, wrong]], vocab_size=65_536)
    assert not (tmp_path / "shards" / "index.json").exists()


@pytest.mark.parametrize(("vocab_size", "end"), [(1 << 33, 0), (100, 100)])
def test_a_vocabulary_that_cannot_be_stored_is_refused(tmp_path: Path, vocab_size: int, end: int) -> None:
    with pytest.raises(UserError, match="cannot be stored"):
        ShardWriter(tmp_path / "x", "toy", "tok", vocab_size, end)


def test_what_is_not_finished_cannot_be_read(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "x", "toy", "tok", 100, 0)
    writer.add(np.array([1, 2]), 2)
    with pytest.raises(UserError, match=r"index.json: cannot be read"):
        ShardReader(tmp_path / "x")


def test_shards_close_with_the_document_that_reaches_the_limit(write_shards: Callable[..., Path]) -> None:
    folder = write_shards([[1] * 9, [2] * 9, [3] * 30, [4]], shard_bytes=40)
    index = json.loads((folder / "index.json").read_text())
    assert [(shard["tokens"], shard["documents"]) for shard in index["shards"]] == [(21, 2), (31, 1), (2, 1)]


def test_the_index_tells_sizes_and_what_the_writer_adds(write_shards: Callable[..., Path]) -> None:
    index = ShardReader(write_shards([[5, 6], [999]], note="hello")).index
    assert (index.tokens, index.documents, index.text_bytes) == (6, 2, 3)
    assert index.shards[0].max_id == 999
    assert index.extra == {"note": "hello"}
