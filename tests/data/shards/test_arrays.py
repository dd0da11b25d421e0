from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmkit.data.shards.format import BLOCK_BYTES
from llmkit.data.shards.reader import ShardReader
from llmkit.data.shards.writer import ShardWriter
from llmkit.errors import UserError

Document = tuple[
    list[bool] | int, bool
]  # which tokens are targets, or how many, all of them; the same of the end


def write(
    folder: Path, documents: list[Document], shard_bytes: int = 1 << 20
) -> tuple[ShardReader, list[bool]]:
    """Shards of these documents, and which tokens of the stream are targets."""
    writer = ShardWriter(folder, "toy", "tok", 60_000, 0, shard_bytes)
    stream = [True]
    for shown, end in documents:
        bits = [True] * shown if isinstance(shown, int) else shown
        targets = None if isinstance(shown, int) else np.array(shown, dtype=bool)
        writer.add(np.ones(len(bits), dtype=np.int64), len(bits), targets, end)
        stream += [*bits, end]
    writer.finish()
    return ShardReader(folder), stream


@given(
    documents=st.lists(
        st.tuples(st.lists(st.booleans(), max_size=30) | st.integers(0, 30), st.booleans()), max_size=9
    ),
    length=st.integers(1, 40),
    shard_bytes=st.sampled_from([20, 60, 1 << 20]),
)
@example(documents=[([False] * 6, True)], length=7, shard_bytes=20)  # a row is longer than its file of bits
@example(documents=[(40, True), ([True] * 9 + [False], False)], length=8, shard_bytes=1 << 20)
@example(documents=[(40, True), (40, True), ([False], True), (50, True)], length=16, shard_bytes=20)
@settings(deadline=None, max_examples=60)
def test_each_label_of_each_row_is_a_target_or_not_as_its_token_is(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document], length: int, shard_bytes: int
) -> None:
    reader, stream = write(tmp_path_factory.mktemp("shards"), documents, shard_bytes)
    assert reader.has_mask == (not all(stream))
    count = reader.period // length
    targets = reader.targets(np.arange(count)[::-1], length)
    read = reader.read_targets(1, len(stream))
    if targets is None or read is None:
        assert all(stream)
    else:
        assert targets.dtype == bool
        assert targets[::-1].tolist() == [stream[k * length + 1 :][:length] for k in range(count)]
        assert read.tolist() == stream[1:]
        if count:
            around = np.arange(count, 3 * count + 3)
            places = around[:, None] * length + np.arange(length)
            wanted = np.array(stream)[places % reader.period + 1]
            assert (reader.targets(around, length) == wanted).all()


def test_documents_that_are_targets_as_a_whole_leave_no_file_behind(tmp_path: Path) -> None:
    reader, _ = write(tmp_path, [(3, True), ([True, True], True)])
    assert reader.targets(np.array([0]), 2) is None
    assert not list(tmp_path.glob("*.mask*"))


def test_only_shards_that_need_one_have_a_bit_file(tmp_path: Path) -> None:
    reader, stream = write(tmp_path, [(30, True), ([False] * 30, True), (30, True)], shard_bytes=20)
    assert [path.name for path in tmp_path.glob("*.mask")] == ["toy-00001.mask"]
    assert np.array_equal(reader.read_targets(0, len(stream)), stream)


def test_bits_are_little_endian_and_count_from_the_shard_s_first_token(tmp_path: Path) -> None:
    write(tmp_path, [([True, False, True], True), ([False] * 5, False)])
    assert (tmp_path / "toy-00000.mask").read_bytes() == bytes([0b00011011, 0b000])


def test_many_tokens_before_the_first_that_is_no_target(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "toy", "tok", 60_000, 0)
    for _ in range(8):  # a bit each: a block of bits and one byte more
        writer.add(np.ones(BLOCK_BYTES, dtype=np.uint16), 0)
    writer.add(np.array([1]), 1, np.array([False]))
    index = writer.finish()
    assert len(index.shards[0].mask) == 2
    reader, end = ShardReader(tmp_path), index.tokens
    assert reader.read_targets(end - 4, end).tolist() == [True, True, False, True]
    assert reader.read_targets(0, end - 2).all()
    assert reader.verify() == len(index.shards[0].blocks) + 2


def test_a_damaged_bit_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, [([True, False] * 20, True)])
    path = tmp_path / "toy-00000.mask"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 8]) + content[1:])
    with pytest.raises(UserError, match=r"toy-00000.mask: block 0 .* does not match its checksum"):
        ShardReader(tmp_path).targets(np.array([0]), 4)
    with pytest.raises(UserError, match=r"toy-00000.mask: block 0"):
        ShardReader(tmp_path).verify()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"toy-00000.mask: 5 bytes, index.json says 6"):
        ShardReader(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"toy-00000.mask: cannot be read"):
        ShardReader(tmp_path)


def test_the_digest_tells_which_tokens_are_targets(tmp_path: Path) -> None:
    shown = [(5, True), ([True, False], True), ([False, True], True)]
    digests = {write(tmp_path / str(i), [(9, True), document])[0].digest for i, document in enumerate(shown)}
    same = write(tmp_path / "same", [(9, True), ([True] * 5, True)])[0].digest
    assert len(digests) == 3
    assert same in digests  # given as bits or not


def test_folders_without_bits_in_their_index_are_read(tmp_path: Path) -> None:
    write(tmp_path, [(3, True)])
    index = json.loads((tmp_path / "index.json").read_text())
    del index["shards"][0]["mask"], index["checksum"]
    (tmp_path / "index.json").write_text(json.dumps({**index, "version": 1}))
    assert not ShardReader(tmp_path).has_mask
