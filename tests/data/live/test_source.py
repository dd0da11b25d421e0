from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config import schema
from llmkit.data.live import source as source_module
from llmkit.data.live.source import LiveSource, open_reader, shuffled
from llmkit.data.live.stream import Lane
from llmkit.data.sources.files import File, list_files
from llmkit.data.sources.records import PromptCompletion
from tests.data.live.fakes import FakeEncoder, live


def with_sizes(sizes: list[int], **changes: Any) -> LiveSource:
    return live([["x"] * size for size in sizes], **changes)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 10))
def test_each_unit_belongs_to_one_lane_and_lanes_serve_by_their_text(sizes: list[int], limit: int) -> None:
    source = with_sizes(sizes, lane_limit=limit)
    assert sorted(unit for lane in source.lane_splits for unit in lane) == list(range(len(sizes)))
    assert 1 <= source.lanes <= max(1, min(limit, sum(size > 0 for size in sizes)))
    assert set(source.lane_table.ravel().tolist()) == set(range(source.lanes))


@given(st.integers(0, 300), st.integers(0, 2**64))
def test_an_order_by_key_has_each_number_once(count: int, word: int) -> None:
    assert sorted(shuffled(count, word)) == list(range(count))


def test_orders_depend_on_seed_number_lane_and_epoch() -> None:
    source = with_sizes([1] * 80)
    changed = [
        source,
        dataclasses.replace(source, seed=8),
        source.keyed(4, seed=7),
        source.keyed(3, seed=9),
    ]
    orders = [one.split_order(0, 0) for one in changed] + [source.split_order(0, 1)]
    orders += [[unit - 1 for unit in source.split_order(1, 0)]]
    assert len({tuple(order) for order in orders}) == len(orders)
    windows = [one.window_order(40, 0, 0, 0, 0) for one in changed]
    for words in [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        windows.append(source.window_order(40, *words))
    assert len({tuple(order) for order in windows}) == len(windows)
    assert source.keyed(3, seed=7) is source


def test_the_digest_tells_whatever_changes_the_rows() -> None:
    base = with_sizes([3, 4])
    others = [
        with_sizes([3, 5]),
        with_sizes([3, 4], record="chat"),
        with_sizes([3, 4], window=5),
        with_sizes([3, 4], lane_limit=1),
        with_sizes([3, 4], errors="raise"),
        with_sizes([3, 4], heldout_every=4),
        dataclasses.replace(base, encoder=FakeEncoder("other")),  # type: ignore[arg-type]
    ]
    assert len({source.digest for source in [base, *others]}) == 1 + len(others)
    assert base.digest == with_sizes([3, 4]).digest
    assert base.digest == with_sizes([3, 4], seed=1, max_epochs=2).digest


def test_the_strict_digest_is_the_one_under_errors_raise() -> None:
    strict = with_sizes([3, 4], errors="raise").digest
    for errors in ("skip", "replace", "raise"):
        assert with_sizes([3, 4], errors=errors).strict_digest == strict
    assert with_sizes([3, 5], errors="skip").strict_digest != strict


@pytest.mark.parametrize(
    ("paths", "moved"),
    [
        (["/a/b/x.jsonl", "/a/b/c/y.jsonl"], ["/d/x.jsonl", "/d/c/y.jsonl"]),
        (["/a/x.jsonl"], ["/b/c/x.jsonl"]),
        (["https://me:secret@host/a/x.jsonl?sig=1"], ["https://host/a/x.jsonl?sig=2"]),
        (["s3://bucket/a/x.jsonl", "s3://bucket/a/y.jsonl"], ["/mnt/a/x.jsonl", "/mnt/a/y.jsonl"]),
        (
            ["hf://datasets/o/n@c0ffee/a/x.jsonl", "hf://datasets/o/n@c0ffee/b/y.jsonl"],
            ["hf://datasets/o/n@decade/a/x.jsonl", "hf://datasets/o/n@decade/b/y.jsonl"],
        ),
    ],
)
def test_files_are_known_by_name_below_their_folder_and_size_and_tag(
    paths: list[str], moved: list[str]
) -> None:
    def known(paths: list[str], tag: str = "t") -> list[tuple[str, int, str]]:
        return source_module.known_files([File(path, 3, tag, 17) for path in paths])

    assert known(paths) == known(moved)
    assert known(paths) != known(paths, "u")
    assert known(paths) != known([path.replace("x.", "z.") for path in paths])
    assert "secret" not in str(known(paths))
    assert known(paths, "") != known(moved, "")  # without a tag the path has to tell


def test_a_source_goes_to_other_processes_and_gives_the_same_rows_there() -> None:
    source = live([[f"{number}{'x' * number}" for number in range(9)] for _ in range(4)])
    again = pickle.loads(pickle.dumps(source))
    assert [next(Lane(again, 1)).cursor] == [next(Lane(source, 1)).cursor]
    assert again.digest == source.digest


def test_every_token_of_plain_text_is_a_target() -> None:
    kinds = ("text", "ids", "chat", "prompt_completion")
    have = [live([[PromptCompletion("a", "b")]], record=kind).has_mask for kind in kinds]
    assert have == [False, True, True, True]


def test_files_are_cut_so_that_lanes_have_some_units_each(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(30_000):
            file.write(f'{{"text": "{number:>100}"}}\n')
    spec = schema.Source(type="jsonl", path=str(tmp_path), live=True)
    config = schema.Data(sources=[spec], stream_shards=2, sequence_length=64, shuffle_window=3)
    reader = open_reader(spec, "toy", "data.sources.0", config, list_files(spec, "data.sources.0"))
    size = (tmp_path / "a.jsonl").stat().st_size
    assert len(reader.splits) == pytest.approx(8, abs=1)
    source = LiveSource.of(reader, config, FakeEncoder()).keyed(0, seed=1)  # type: ignore[arg-type]
    assert (source.lanes, source.window, source.name) == (2, 3, "toy")
    assert sum(unit.size for unit in reader.splits) == size
    lane = Lane(source, 0)
    texts = "".join(chr(token) for _ in range(50) for token in next(lane).tokens[1:]).split("\0")
    numbers = [int(text) for text in texts if len(text) == 100]
    assert len(set(numbers)) == len(numbers) > 25


def test_a_record_longer_than_a_unit_leaves_no_lane_without_one(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(20_000):
            file.write(f'{{"text": "{"x" * 900_000 if number == 10_000 else number:>100}"}}\n')
    spec = schema.Source(type="jsonl", path=str(tmp_path), live=True)
    config = schema.Data(sources=[spec], stream_shards=48, sequence_length=64)
    reader = open_reader(spec, "toy", "data.sources.0", config, list_files(spec, "data.sources.0"))
    empty = [unit for unit in range(len(reader.splits)) if not any(reader.read(unit))]
    assert len(empty) >= 2
    source = LiveSource.of(reader, config, FakeEncoder())  # type: ignore[arg-type]
    assert source.lanes == -(-len(reader.splits) // 4)
    for lane in range(source.lanes):
        assert next(Lane(source, lane)).tokens.size == 65


def test_units_are_dealt_once_and_not_again_in_the_processes_that_tokenize(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dealt = []
    real = source_module.assign_splits
    monkeypatch.setattr(source_module, "assign_splits", lambda *a: dealt.append(a) or real(*a))
    source = with_sizes([3, 4, 5])
    assert source.lane_table.size
    same = pickle.loads(pickle.dumps(source.keyed(source.stream_id, source.seed)))
    assert same.digest == source.digest
    assert same.split_order(0, 0) == source.split_order(0, 0)
    assert len(dealt) == 1
