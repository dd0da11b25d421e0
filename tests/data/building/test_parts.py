from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config import schema
from llmkit.data.building import parts
from llmkit.data.building.parts import HeldOutSampler, PartMaker, group_splits, held_out, read_part
from llmkit.data.building.stats import BuildStats
from llmkit.data.shards.documents import Documents
from llmkit.data.sources.files import list_files
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import Record, Skipped, Text
from llmkit.data.sources.splits import Split, split_files
from llmkit.data.tokens.encode import Encoded
from llmkit.errors import RunFault, UserError


class Letters:
    """A token a character; refuses what has a #. learned: bytes of text that a character is counted as."""

    learned = 1
    tokenizer = SimpleNamespace(
        tiktoken_disabled_because="it is slow", hash="letters", vocab_size=1 << 16, end_of_text_id=0
    )

    def encode(self, records: Sequence[Record], threads: bool = False) -> list[Encoded | Skipped]:
        return [self._encode(record.text) for record in records if isinstance(record, Text)]

    def spells_end(self, record: Record) -> bool:
        return isinstance(record, Text) and record.text.endswith("</s>")

    def _encode(self, text: str) -> Encoded | Skipped:
        if "#" in text:
            return Skipped("refused", "it has a #")
        return Encoded(np.array([ord(char) for char in text], dtype=np.int32), None, self.learned * len(text))


def maker(tmp_path: Path, texts: list[Any], errors: str = "skip", unit_bytes: int = 1 << 20) -> PartMaker:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = schema.Source(type="jsonl", path=str(path))
    files = list_files(spec, "data.sources.0")
    units = split_files(spec, files, unit_bytes)
    reader = SourceReader(spec, "toy", "data.sources.0", errors, files, units)  # type: ignore[arg-type]
    (tmp_path / "parts").mkdir()
    groups = [tuple(range(len(units)))]
    return PartMaker(reader, Letters(), groups, 5, tmp_path / "parts")  # type: ignore[arg-type]


def texts_of(documents: Documents) -> list[str]:
    return ["".join(map(chr, tokens)) for tokens in documents.one_by_one()]


def made(maker: PartMaker) -> tuple[BuildStats, list[list[str]], list[list[str]]]:
    """What the part found, and the texts of each block, to train on and held out."""
    maker.make(0)
    stats, blocks = read_part(maker.path(0))
    told = [(texts_of(train), texts_of(held)) for train, held in blocks]
    return stats, [train for train, _ in told], [held for _, held in told]


def test_splits_are_grouped_to_a_size() -> None:
    units = [Split(0, 0, 0, size) for size in (3, 3, 9, 1, 2, 5, 1)]
    assert group_splits(units, 5) == [(0, 1), (2,), (3, 4, 5), (6,)]
    assert group_splits(units, 1) == [(number,) for number in range(7)]
    assert group_splits([], 5) == []


@given(st.integers(0, 1000), st.integers(2, 30), st.integers(0, 500))
def test_one_of_so_many_neighbours_is_held_out(part: int, every: int, groups: int) -> None:
    chosen = held_out(part, np.arange(groups * every), every)
    assert (chosen.reshape(groups, every).sum(axis=1) == 1).all()
    choice = HeldOutSampler(part, every)
    assert [choice(number) for number in range(chosen.size)] == chosen.tolist()


def test_the_choice_differs_between_parts_and_spares_the_first_document() -> None:
    assert len({held_out(part, np.arange(200), 20).tobytes() for part in range(50)}) == 50
    assert not any(held_out(0, np.zeros(1, dtype=np.int64), every)[0] for every in range(2, 200))


def test_nothing_is_held_out_where_none_is_asked_for() -> None:
    assert not held_out(3, np.arange(100), 0).any()


def test_every_document_is_there_once_and_they_are_shuffled(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(50)]
    part, (train,), (held,) = made(maker(tmp_path, texts, unit_bytes=99))
    assert sorted(train + held) == sorted(texts)
    assert len(held) == 10
    assert train != sorted(train, key=texts.index)
    assert part.records == 50


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    part, (train,), _ = made(maker(tmp_path, ["a", "", 7, "", "#", "b\ud800"]))
    assert train == ["a"]
    assert part.left_out == {"empty": 2, "no string": 1, "refused": 1, "not UTF-8": 1}
    assert part.records == 6


def test_why_the_fast_tokenizer_is_not_at_work_is_kept_once_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = maker(tmp_path, ["a", "b"])
    assert made(one)[0].slow_reason is None
    shutil.rmtree(one.path(0))
    monkeypatch.setattr(parts, "TIKTOKEN_AFTER", 2)
    assert made(one)[0].slow_reason == "it is slow"


def test_mended_documents_are_counted_and_kept(tmp_path: Path) -> None:
    part, (train,), (held,) = made(maker(tmp_path, ["a", "b\ud800"], errors="replace"))
    assert sorted(train + held) == ["a", "b\ufffd"]
    assert part.left_out == {"mended with U+FFFD": 1}


def test_a_refused_record_stops_the_build_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"texts.jsonl:3: it has a #; mend the record, or set data.errors"):
        maker(tmp_path, ["a", "b", "#"], errors="raise").make(0)
    assert list((tmp_path / "parts").iterdir()) == []


@pytest.mark.parametrize("learned", [0, 1])
def test_memory_is_bounded_by_writing_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: int
) -> None:
    monkeypatch.setattr(parts, "BATCH_TEXT", 20)
    monkeypatch.setattr(parts, "BUFFER_BYTES", 200)  # of two bytes a token
    texts = [f"text {number}" for number in range(50)]
    one = maker(tmp_path, texts)
    # As of a chat, of which little is learned: its tokens are in memory all the same.
    monkeypatch.setattr(Letters, "learned", learned)
    _, train, held = made(one)
    assert len(train) > 3
    blocks = [[*one, *other] for one, other in zip(train, held, strict=True)]
    assert all(sum(map(len, block)) <= 120 for block in blocks)
    assert sorted(text for block in blocks for text in block) == sorted(texts)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_part_depends_on_nothing_but_its_number(tmp_path: Path) -> None:
    one = maker(tmp_path, [f"text {number}" for number in range(50)])
    one.make(0)
    first = contents(one.path(0))
    shutil.rmtree(one.path(0))
    one.make(0)
    assert contents(one.path(0)) == first


def test_a_part_that_another_process_made_meanwhile_stays(tmp_path: Path) -> None:
    one = maker(tmp_path, ["a", "b"])
    one.make(0)
    first = one.path(0).stat().st_ino
    one.make(0)
    assert one.path(0).stat().st_ino == first
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["part-000000"]


@pytest.mark.parametrize(("name", "size"), [("bin", -5), ("idx", -9), ("bin", 3), ("json", -9), ("json", 40)])
def test_a_damaged_part_is_removed_so_that_it_is_made_again(tmp_path: Path, name: str, size: int) -> None:
    """size: bytes that remain; below 0, the byte that is flipped, from the end."""
    one = maker(tmp_path, [f"text {number}" for number in range(50)])
    one.make(0)
    (path,) = one.path(0).glob(f"*.{name}")
    content = bytearray(path.read_bytes())
    if size < 0:
        content[size] ^= 1
    path.write_bytes(content[:size] if size > 0 else content)
    with pytest.raises(RunFault, match="was damaged and is removed; run the same command again"):
        list(read_part(one.path(0))[1])
    assert not one.path(0).exists()


def test_masks_and_sizes_of_blocks_come_back(tmp_path: Path) -> None:
    one = maker(tmp_path, ["abc", "de", "f"])

    def encode(records: Sequence[Record], threads: bool = False) -> list[Encoded]:
        return [
            Encoded(np.array([5, 6]), np.array([False, True]), 1, end_is_target=False),
            Encoded(np.array([7]), None, 4),
            Encoded(np.array([8, 9]), None, 10),
        ]

    one.encoder.encode = encode  # type: ignore[method-assign, assignment]
    one.make(0)
    _, blocks = read_part(one.path(0))
    [(train, held)] = blocks
    assert train.text_bytes + held.text_bytes == 15
    learned = {}
    for some in (train, held):
        targets = np.ones(some.tokens.size, bool) if some.targets is None else some.targets
        learned |= dict(zip(some.tokens.tolist(), targets.tolist(), strict=True))
        if 6 in some.tokens:
            assert not targets[some.tokens.tolist().index(6) + 1], "its end-of-text is no target"
    del learned[0]
    assert learned == {5: False, 6: True, 7: True, 8: True, 9: True}
