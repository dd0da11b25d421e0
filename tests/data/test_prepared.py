from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.data.prepared import PreparedData, lane_lines, verify
from llmkit.data.shards.writer import ShardWriter
from llmkit.errors import UserError
from llmkit.files import write_sealed
from tests.data.live.fakes import live
from tests.data.shards.megatron_files import write_megatron
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.data.toy import ToyRows, folders, toy

Build = Callable[..., tuple[PreparedData, schema.Data]]
END = "<|endoftext|>"


def silent(line: str) -> None:
    pass


def write_shards(folder: Path, texts: list[str], **changes: Any) -> Path:
    tokenizer = bytes_tokenizer(END)
    fields = {"tokenizer": tokenizer.hash, "vocab_size": 257, "end_of_text_id": 256}
    writer = ShardWriter(folder, "given", **fields | changes)
    for text in texts:
        writer.add(np.frombuffer(text.encode(), dtype=np.uint8), len(text.encode()))
    writer.finish()
    return folder


def settings(tmp_path: Path, *sources: schema.Source, **changes: Any) -> schema.Data:
    fields: dict[str, Any] = {"tokenizer": schema.Tokenizer(type="bytes"), "sequence_length": 16}
    return schema.Data(sources=list(sources), cache_dir=str(tmp_path / "cache"), **fields | changes)


def test_sizes_are_those_of_all_sources(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    text = sum(len(Path(str(source.path)).read_bytes().replace(b"\n", b"")) for source in config.sources)
    assert prepared.train_bytes + prepared.heldout_bytes == text
    # Bytes as tokens: one a byte, one before the first and one after each document.
    documents = sum(source.stored.documents for source in prepared.sources if source.stored)
    assert prepared.train_tokens == prepared.train_bytes + documents + len(prepared.sources)


def test_sources_are_named_by_type_and_place(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    assert [(source.name, source.weight) for source in prepared.sources] == [("text-0", 3.0), ("text-1", 1.0)]


def test_text_that_does_not_fill_a_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("abc")
    source = schema.Source(type="text", path=str(tmp_path / "short"))
    with pytest.raises(UserError, match=r"text-0: it has 5 training tokens, and a row .* takes 17"):
        prepare(settings(tmp_path, source), silent)


def test_verify_reads_everything_and_names_what_is_damaged(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    lines: list[str] = []
    verify(prepared, lines.append)
    assert [line.split(":")[0] for line in lines] == [
        "text-0/train", "text-0/heldout", "text-1/train", "text-1/heldout",
    ]  # fmt: skip
    folder = folders(prepared)["text-1"]
    path = folder / "heldout" / "text-1-00000.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")
    damaged = prepare(config, silent)
    wanted = rf"text-1-00000.bin: block 0 .* does not match .*; delete {folder} and build the data again"
    with pytest.raises(UserError, match=wanted):
        verify(damaged, silent)


def test_tokens_of_another_tokenizer_are_refused(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    path = folders(prepared)["text-0"] / "train" / "index.json"
    index = json.loads(path.read_text())
    del index["checksum"]
    write_sealed(path, {**index, "tokenizer": "0" * 16})
    with pytest.raises(UserError, match="these tokens were made with tokenizer 0000000000000000"):
        prepare(config, silent)


@pytest.mark.parametrize(
    "content",
    [
        '{"version": 1, "heldout": false, "left_out": {}}',
        '{"version": 2, "heldout": 1, "left_out": {}}',
    ],
)
def test_a_damaged_record_is_refused(prepared_bytes: Build, content: str) -> None:
    prepared, config = prepared_bytes()
    folder = folders(prepared)["text-1"]
    (folder / "source.json").write_text(content)
    with pytest.raises(UserError, match=rf"source.json: of another version or damaged; delete {folder}"):
        prepare(config, silent)


def test_shards_of_others_are_read_in_place(tmp_path: Path) -> None:
    train = write_shards(tmp_path / "train", ["some text that is given"] * 9)
    heldout = write_shards(tmp_path / "heldout", ["and some more"])
    source = schema.Source(
        type="shards", path=str(train), heldout_path=str(heldout), name="mine", max_epochs=2
    )
    lines: list[str] = []
    prepared = prepare(settings(tmp_path, source), lines.append)
    (one,) = prepared.sources
    assert (one.name, one.kind, one.max_epochs) == ("mine", "shards", 2)
    assert one.stored is not None
    assert prepared.tokenizer.decode(one.stored.document(0)) == "some text that is given"
    assert prepared.heldout_bytes == len("and some more")
    assert folders(prepared) == {}
    assert lines == ["data: 217 training tokens of 207 bytes, 13 bytes held out"]
    assert prepared.fingerprint.sources[0].kind == "shards"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "another"}, "these tokens were made with tokenizer another, the run has"),
        ({"vocab_size": 300, "end_of_text_id": 299}, "holds token id 299, the vocabulary has 257 tokens"),
    ],
)
def test_shards_that_the_tokenizer_does_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_shards(tmp_path / "train", ["some text that is given"] * 9, **changes)
    source = schema.Source(type="shards", path=str(path), name="mine")
    with pytest.raises(UserError, match=rf"{message}.*"):
        prepare(settings(tmp_path, source), silent)


def test_shards_with_another_end_of_text_are_refused(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "train", ["some text that is given"] * 9, end_of_text_id=0)
    heldout = write_shards(tmp_path / "heldout", ["and some more"], end_of_text_id=1)
    with pytest.raises(
        UserError, match=r"train.index.json: documents end with token 0, .* is 256; source mi"
    ):
        prepare(settings(tmp_path, schema.Source(type="shards", path=str(path), name="mine")), silent)
    good = write_shards(tmp_path / "good", ["some text that is given"] * 9)
    source = schema.Source(type="shards", path=str(good), heldout_path=str(heldout), name="mine")
    with pytest.raises(UserError, match=r"heldout.index.json: documents end with token 1"):
        prepare(settings(tmp_path, source), silent)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    source = schema.Source(type="shards", path=str(tmp_path / "nothing"), name="mine")
    with pytest.raises(
        UserError, match=r"source mine: .*nothing is no folder of token shards: .* index.json in it$"
    ):
        prepare(settings(tmp_path, source), silent)
    write_shards(tmp_path / "above" / "train", ["some text that is given"] * 9)
    source = schema.Source(type="shards", path=str(tmp_path / "above"), name="mine")
    with pytest.raises(UserError, match=r"folders of token shards in it: \S*above/train$"):
        prepare(settings(tmp_path, source), silent)


def test_megatron_files_are_read_in_place(tmp_path: Path) -> None:
    documents = [[[1, 2, 3, 256]]] * 9
    write_megatron(tmp_path / "given", documents, dtype="int32")
    source = schema.Source(type="megatron", path=str(tmp_path / "given"))
    prepared = prepare(settings(tmp_path, source), silent)
    assert (prepared.sources[0].kind, prepared.train_tokens, prepared.heldout) == ("megatron", 36, {})
    lines: list[str] = []
    verify(prepared, lines.append)
    assert lines == ["megatron-0/train: 36 tokens in 1 blocks are ids of the vocabulary"]


def test_the_loss_masks_of_chats_come_through(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because it is so"}]
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 9)
    source = schema.Source(type="jsonl", path=str(path), record="chat")
    prepared = prepare(settings(tmp_path, source, validation_fraction=0.0), silent)
    stored = prepared.sources[0].stored
    assert stored is not None
    assert stored.has_mask
    tokens, targets = stored.read(0, stored.tokens), stored.read_targets(0, stored.tokens)
    assert targets is not None
    learned = prepared.tokenizer.decode(tokens[targets & (tokens < 256)])
    assert "because it is so" in learned
    assert "why" not in learned


def test_how_a_live_source_is_shared_out_is_told_with_the_remedy_where_that_is_wasteful() -> None:
    data, _ = toy({"a": ToyRows(100), "web": live([["x"]] * 48, lane_limit=48)})
    assert list(lane_lines(data, 8)) == ["data: web is read in 48 lanes"]
    line = next(lane_lines(data, 96))
    assert "up to 2% of it to use 1.0%: make data.stream_shards a multiple of the 96" in line
    told = "48 lanes; a process tokenizes up to 100% of it to use 14.3%: make data.stream_shards a multiple"
    assert told in next(lane_lines(data, 7))
    few, _ = toy({"web": live([["x"]] * 2, lane_limit=48)})
    assert "up to 50% of it to use 12.5%: give it more files" in next(lane_lines(few, 8))
