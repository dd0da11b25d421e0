from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmkit.data.shards.format import BLOCK_BYTES
from llmkit.data.shards.reader import ShardReader
from llmkit.data.shards.writer import ShardWriter
from llmkit.errors import UserError
from llmkit.files import write_sealed

DOCUMENTS = [[1] * 9, [2] * 9, [3] * 30, [4], [5] * 12]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    del index["checksum"]
    write_sealed(folder / "index.json", index)


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    length=st.integers(1, 9),
    shard_bytes=st.integers(20, 200),
)
@example(lengths=[0], length=2, shard_bytes=20)  # less than a row
@example(lengths=[3, 1, 30], length=9, shard_bytes=20)  # rows over three shards
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_token_of_the_whole_rows_is_a_label_once_and_in_order_over_all_shards(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, "toy", "tok", 60_000, 0, shard_bytes)
    stream, next_id = [0], 1
    for size in lengths:
        document = list(range(next_id, next_id + size))
        next_id += size
        stream += [*document, 0]
        writer.add(np.array(document, dtype=np.int64), 0)
    writer.finish()
    reader = ShardReader(folder)
    period, count = len(stream) - 1, (len(stream) - 1) // length
    assert reader.period == period
    if count:  # the row at the end goes on at the beginning, and so do the epochs that follow
        index = np.arange(count, 3 * count + 3)
        places = index[:, None] * length + np.arange(length + 1)
        assert reader.rows(index, length).tolist() == np.array(stream)[places % period].tolist()
    rows = reader.rows(np.arange(count), length)
    assert rows.shape == (count, length + 1)
    assert rows[:, :-1].ravel().tolist() == stream[: count * length]
    assert rows[:, 1:].ravel().tolist() == stream[1 : count * length + 1]
    assert reader.rows(np.arange(count)[::-1], length).tolist() == rows[::-1].tolist()
    out = np.empty(rows.shape, dtype=np.int32)
    assert reader.rows(np.arange(count), length, out) is out
    assert out.tolist() == rows.tolist()


def test_more_rows_than_are_copied_at_once_come_back(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "toy", "tok", 60_000, 0)
    stream = np.arange(300_000) % 50_000
    writer.add(stream[1:], 0)
    writer.finish()
    rows = ShardReader(tmp_path).rows(np.arange(299), 1000)
    assert (rows == stream[np.arange(299)[:, None] * 1000 + np.arange(1001)]).all()


@pytest.mark.parametrize("repeats", [1, 40])
def test_rows_of_several_files_come_back_whether_few_or_many(
    write_shards: Callable[..., Path], repeats: int
) -> None:
    reader = ShardReader(write_shards([list(range(1, 2 + 7 * k)) for k in range(30)], shard_bytes=1500))
    assert len(reader.index.shards) > 2
    stream, length = reader.read(0, reader.tokens), 23
    index = np.random.default_rng(0).permutation(np.arange(reader.period // length).repeat(repeats))
    wanted = np.stack([stream[k * length : (k + 1) * length + 1] for k in index])
    assert np.array_equal(reader.rows(index, length), wanted)
    out = np.zeros(wanted.shape, dtype=np.int32)
    assert reader.rows(index, length, out=out) is out
    assert np.array_equal(out, wanted)


def test_any_range_can_be_read_across_shards(write_shards: Callable[..., Path]) -> None:
    reader = ShardReader(write_shards(DOCUMENTS, shard_bytes=40))
    stream = [0, *(token for document in DOCUMENTS for token in [*document, 0])]
    for start in range(len(stream)):
        for stop in range(start, len(stream) + 1):
            assert reader.read(start, stop).tolist() == stream[start:stop]


@pytest.mark.parametrize("shard_bytes", [1, 40, 1 << 20])
def test_documents_come_back_one_by_one(write_shards: Callable[..., Path], shard_bytes: int) -> None:
    reader = ShardReader(write_shards(DOCUMENTS, shard_bytes=shard_bytes))
    assert [reader.document(i).tolist() for i in range(len(DOCUMENTS))] == DOCUMENTS


def test_a_flipped_byte_is_named_by_file_and_block_on_first_touch_only(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "toy", "tok", 60_000, 0)
    tokens = BLOCK_BYTES // 2  # of two bytes: a block
    writer.add(np.ones(5 * tokens // 2, dtype=np.int64), 0)
    writer.finish()
    flip(tmp_path / "toy-00000.bin", BLOCK_BYTES + 77)
    reader = ShardReader(tmp_path, remedy="do this")
    assert reader.rows(np.array([0]), 1000).sum() == 1000  # block 0 is whole
    assert reader.read(2 * tokens, 2 * tokens + 1).tolist() == [1]  # block 2 too
    wanted = (
        rf"toy-00000.bin: block 1 \(bytes {BLOCK_BYTES} to {2 * BLOCK_BYTES - 1}\) does not match its "
        "checksum, the file is damaged; do this"
    )
    with pytest.raises(UserError, match=wanted):
        reader.read(tokens + 5, tokens + 6)
    with pytest.raises(UserError, match="block 1"):  # a row that begins in block 0 and ends in block 1
        reader.rows(np.array([0, tokens // 1000]), 1000)
    with pytest.raises(UserError, match="block 1"):
        reader.verify()


@pytest.mark.parametrize(
    ("block", "whole", "damaged"),
    [(0, [0, 3200], 1500), (0, [0, 3200], 1048), (1, [0, 1048, 3144], 3145), (1, [0, 1048, 3144], 3200)],
    ids=["in the block", "from the shard before", "from the block before", "in a later block"],
)
def test_a_flipped_byte_in_a_later_shard_is_found_by_the_rows_on_its_block(
    tmp_path: Path, block: int, whole: list[int], damaged: int
) -> None:
    writer = ShardWriter(tmp_path, "toy", "tok", 60_000, 0, shard_bytes=1 << 20)
    for tokens in (1 << 20, 3 << 20):  # shards of half a block, and of one and a half
        writer.add(np.ones(tokens, dtype=np.int64), 0)
    writer.finish()
    flip(tmp_path / "toy-00001.bin", block * BLOCK_BYTES + 77)
    reader = ShardReader(tmp_path)
    assert reader.rows(np.array(whole), 1000).max() == 1
    with pytest.raises(UserError, match=rf"toy-00001.bin: block {block} "):
        reader.rows(np.array([*whole, damaged]), 1000)


def test_verify_counts_blocks_and_finds_damaged_document_places(write_shards: Callable[..., Path]) -> None:
    folder = write_shards(DOCUMENTS, shard_bytes=40)
    assert ShardReader(folder).verify() == len(list(folder.glob("*.bin")))
    flip(folder / "toy-00001.idx", 3)
    with pytest.raises(UserError, match=r"toy-00001.idx: does not match its checksum"):
        ShardReader(folder).verify()


def test_a_truncated_shard_is_named(write_shards: Callable[..., Path]) -> None:
    path = write_shards(DOCUMENTS, shard_bytes=40) / "toy-00001.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"toy-00001.bin: {size - 2} bytes, index.json says {size}"):
        ShardReader(path.parent)


def test_a_missing_shard_is_named(write_shards: Callable[..., Path]) -> None:
    folder = write_shards(DOCUMENTS, shard_bytes=40)
    (folder / "toy-00001.bin").unlink()
    with pytest.raises(UserError, match=r"toy-00001.bin: cannot be read \(No such file or directory\)"):
        ShardReader(folder)


def test_another_tokenizer_is_refused(write_shards: Callable[..., Path]) -> None:
    folder = write_shards(DOCUMENTS)
    ShardReader(folder, tokenizer="tok")
    with pytest.raises(UserError, match="made with tokenizer tok, the run has other"):
        ShardReader(folder, tokenizer="other")


def test_another_end_of_text_is_refused(write_shards: Callable[..., Path]) -> None:
    folder = write_shards(DOCUMENTS)
    ShardReader(folder, end_of_text_id=0)
    wanted = r"index.json: documents end with token 0, the tokenizer's end-of-text is 7; do this"
    with pytest.raises(UserError, match=wanted):
        ShardReader(folder, remedy="do this", end_of_text_id=7)


def test_an_id_above_the_largest_of_the_index_is_named_on_first_touch(
    write_shards: Callable[..., Path],
) -> None:
    folder = write_shards([[7, 99]])
    change_index(folder, lambda index: index["shards"][0].update(max_id=98))
    reader = ShardReader(folder, vocab_size=99)
    with pytest.raises(UserError, match=r"toy-00000.bin: holds token id 99, index.json says that 98 is the"):
        reader.read(0, 1)


def test_an_id_that_the_model_does_not_know_is_refused(write_shards: Callable[..., Path]) -> None:
    folder = write_shards([[7, 99]])
    ShardReader(folder, vocab_size=100)
    with pytest.raises(UserError, match=r"toy-00000.bin: holds token id 99, the vocabulary has 99 tokens"):
        ShardReader(folder, vocab_size=99)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(version=3), "format version 3, this llmkit reads 1 and 2"),
        (lambda i: i.update(dtype="float"), "dtype: Input should be 'uint16' or 'uint32'"),
        (lambda i: i.update(vocab_size=70_000), "dtype uint16 does not go with a vocabulary of 70000"),
        (lambda i: i.update(name="../toy"), "name: String should match pattern"),
        (lambda i: i.update(shards=[]), "shards: List should have at least 1 item"),
        (lambda i: i.pop("tokenizer"), "tokenizer: Field required"),
        (lambda i: i.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda i: i["shards"][0].update(tokens=5), "the figures of shard 0 contradict each other"),
        (
            lambda i: i["shards"][0].update(mask=["0" * 16] * 2),
            "the figures of shard 0 contradict each other",
        ),
        (lambda i: i["shards"][0].update(tokens="5"), "shards.0.tokens: Input should be a valid integer"),
    ],
)
def test_a_wrong_index_is_refused(
    write_shards: Callable[..., Path], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = write_shards(DOCUMENTS)
    change_index(folder, change)
    with pytest.raises(UserError, match=message):
        ShardReader(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "is not valid JSON"), ("[]", "is not a JSON object")])
def test_an_unreadable_index_is_refused(
    write_shards: Callable[..., Path], content: str, message: str
) -> None:
    folder = write_shards(DOCUMENTS)
    (folder / "index.json").write_text(content)
    with pytest.raises(UserError, match=message):
        ShardReader(folder)
