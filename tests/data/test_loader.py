from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.batch import IGNORE
from llmkit.config import schema
from llmkit.data import batches as module
from llmkit.data.live.stream import Row
from llmkit.data.live.workers import LiveRows
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import PreparedData
from llmkit.data.rank_batch import RankBatch
from llmkit.data.sampler import MixtureSampler
from llmkit.data.sources.records import PromptCompletion, Skipped
from llmkit.errors import RunFault, SourceDryError, UserError
from tests.data.live.fakes import live
from tests.data.toy import T, ToyRows, folders, toy

Build = Callable[..., tuple[PreparedData, schema.Data]]
SEED = 5


def two(**changes: Any) -> tuple[Any, schema.Data]:
    """A large and a small source, three to one."""
    return toy({"large": ToyRows(4000), "small": ToyRows(900, 10_000)}, {"large": 3.0}, **changes)


CPU = torch.device("cpu")


def take(loader: TrainLoader, count: int) -> list[RankBatch]:
    with loader:
        return list(itertools.islice(loader, count))


def real_rows(step: RankBatch) -> list[tuple[int, list[int], list[int]]]:
    """(source, inputs, labels) of a rank's rows that do not only fill."""
    rows: Iterator[Any] = (
        (int(source), tokens.tolist(), labels.tolist())
        for batch, sources in zip((rows.to(CPU) for rows in step.micro_batches), step.sources, strict=True)
        for tokens, labels, source in zip(batch.tokens, batch.labels, sources, strict=True)
    )
    return [row for row in rows if row[0] >= 0]


class Job:
    """A run on any number of ranks that is killed and started again; every rank has its own loader."""

    def __init__(self, data: tuple[Any, schema.Data], batch_rows: int, micro: int) -> None:
        self.data, self.batch_rows, self.micro = data, batch_rows, micro
        self.state: dict[str, Any] | None = None
        self.done = 0

    def run(self, world: int, steps: int, workers: int = 0, **changes: Any) -> list[list[Any]]:
        """The next global batches, each in the order of its positions, and the state after them."""
        prepared, config = self.data
        loaders = [
            TrainLoader(prepared, config, SEED, self.batch_rows, self.micro, rank, world, workers=workers)
            for rank in range(world)
        ]
        try:
            if self.state is not None:
                for loader in loaders:
                    loader.load_state_dict(self.state, self.done, **changes)
            first = loaders[0].position
            parts = [step for _ in range(steps) if (step := next_of_all(loaders)) is not None]
            known: list[str] = []
            for loader in loaders:  # what each rank gives, and then what all of them get
                loader.state_dict(lambda text: known.append(text) or [text])  # type: ignore[func-returns-value]
            states = [json.dumps(loader.state_dict(lambda text: known)) for loader in loaders]
        finally:
            for loader in loaders:
                loader.close()
        assert len(set(states)) == 1, "the state is the same on all ranks"
        self.state = json.loads(states[0])
        self.done += len(parts)
        return [in_order(step, first + s * self.batch_rows, self.batch_rows) for s, step in enumerate(parts)]


def next_of_all(loaders: list[TrainLoader]) -> list[RankBatch] | None:
    """The next step of each rank; None, and nothing taken, where one of them has run dry."""
    got: list[RankBatch | None] = []
    left = [loader.lanes_left for loader in loaders]
    dry = [index for index in left[0] if not any(each[index] for each in left)]
    for loader in loaders:
        try:
            got.append(next(loader))
        except SourceDryError:
            got.append(None)
    parts = [step for step in got if step is not None]
    if len(parts) == len(got) and not dry:
        return parts
    for loader, step in zip(loaders, got, strict=True):
        if step is not None:
            loader.undo_last()
    return None


def in_order(parts: list[RankBatch], first: int, batch_rows: int) -> list[Any]:
    """The rows of a global batch in the order of their positions, from the parts of all ranks."""
    assert {part.first for part in parts} == {first}
    queues = [iter(real_rows(part)) for part in parts]
    rows = [next(queues[g % len(parts)]) for g in range(first, first + batch_rows)]
    assert all(next(queue, None) is None for queue in queues)
    return rows


def test_rows_are_those_of_the_order() -> None:
    prepared, config = two()
    readers = [source.stored for source in prepared.sources]
    sampler = MixtureSampler(SEED, [reader.period for reader in readers], [3.0, 1.0], length=T)
    source, _, row = sampler.rows(0, 40)
    rows = [row for step in take(TrainLoader(prepared, config, SEED, 8, 4), 5) for row in real_rows(step)]
    for (got_source, tokens, labels), i, k in zip(rows, source, row, strict=True):
        text = readers[i].rows(np.array([k]), T)[0].tolist()
        assert (got_source, tokens, labels) == (i, text[:-1], text[1:])


def test_an_epoch_holds_every_row_of_a_source_once() -> None:
    prepared, config = two()
    reader = prepared.sources[1].stored
    count = reader.row_count(T)
    steps = take(TrainLoader(prepared, config, SEED, 8, 8), count)
    rows = [tokens for step in steps for source, tokens, _ in real_rows(step) if source == 1][:count]
    assert sorted(rows) == sorted(reader.rows(np.arange(count), T)[:, :-1].tolist())


@given(
    batch_rows=st.integers(1, 9),
    micro=st.integers(1, 3),
    starts=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 5)), min_size=1, max_size=5),
    masked=st.sampled_from([0, 5]),
    stages=st.lists(st.tuples(st.integers(2, 12), st.integers(0, 4)), max_size=2, unique_by=lambda s: s[0]),
)
@settings(max_examples=25, deadline=None)
def test_the_global_batches_do_not_depend_on_ranks_micro_batches_or_resumes(
    batch_rows: int, micro: int, starts: list[tuple[int, int]], masked: int, stages: list[tuple[int, int]]
) -> None:
    curriculum = [schema.Stage(step=step, weights={"b": float(weight)}) for step, weight in stages]
    sources = {"a": ToyRows(300), "b": ToyRows(90, 1000, masked), "c": ToyRows(50, 2000)}
    data = toy(sources, {"a": 3.0}, curriculum=curriculum)
    straight = Job(data, batch_rows, 1).run(1, sum(steps for _, steps in starts))
    job = Job(data, batch_rows, micro)
    assert [batch for world, steps in starts for batch in job.run(world, steps)] == straight


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Any, schema.Data]:
    """Two sources of numbered rows, and a live one of texts in which every character occurs once."""
    characters = (chr(0x4E00 + i) for i in itertools.count())
    is_pair = draw(st.booleans())

    def text(length: int) -> str:
        return "".join(itertools.islice(characters, length))

    def record(length: int) -> Any:
        if length == 0:
            return Skipped("bad", "a record that is left out")
        return (
            PromptCompletion(text(length), text(length // 2)) if is_pair and length % 3 == 0 else text(length)
        )

    lengths = st.lists(st.sampled_from([0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 30]), min_size=1, max_size=8)
    units = draw(st.lists(lengths, min_size=1, max_size=7))
    source = live(
        [[*(record(length) for length in unit), text(3)] for unit in units],
        lane_limit=draw(st.sampled_from([1, 2, 3, 4, 6])),
        window=draw(st.sampled_from([1, 3, 50])),
        record="prompt_completion" if is_pair else "text",
    )
    stages = draw(
        st.lists(st.tuples(st.integers(2, 9), st.integers(0, 4)), max_size=2, unique_by=lambda s: s[0])
    )
    curriculum = [schema.Stage(step=step, weights={"web": float(weight)}) for step, weight in stages]
    sources = {"a": ToyRows(300), "web": source, "b": ToyRows(90, 1000, 5)}
    return toy(sources, {"web": 3.0}, curriculum=curriculum)


@given(
    data=mixtures(),
    batch_rows=st.integers(1, 7),
    micro=st.integers(1, 3),
    starts=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 4)), min_size=1, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_live_rows_do_not_depend_on_ranks_micro_batches_or_resumes_either(
    data: tuple[Any, schema.Data], batch_rows: int, micro: int, starts: list[tuple[int, int]]
) -> None:
    straight = Job(data, batch_rows, 1).run(1, sum(steps for _, steps in starts))
    job = Job(data, batch_rows, micro)
    assert [batch for world, steps in starts for batch in job.run(world, steps)] == straight


@pytest.mark.parametrize("lengths", [(20, 9), (9, 20), (3, 40, 11)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_run_ends_when_a_source_was_read_to_its_last_token_and_goes_on_where_more_is_allowed(
    world: int, lengths: tuple[int, ...]
) -> None:
    count = itertools.count(0x4E00)
    units = [["".join(chr(next(count)) for _ in range(13)) for _ in range(n)] for n in lengths]

    def data(max_epochs: int) -> tuple[Any, schema.Data]:
        source = live(units, window=1, max_epochs=max_epochs)
        return toy({"a": ToyRows(300), "web": source}, {"web": 3.0}, max_epochs={"web": max_epochs})

    def learned(batches: list[list[Any]]) -> Counter[int]:
        rows = [labels for batch in batches for source, _, labels in batch if source == 1]
        return Counter(label for labels in rows for label in labels if label not in (IGNORE, 0))

    straight = Job(data(1), 3, 1).run(1, 1000)
    job = Job(data(1), 3, 1)
    before = job.run(world, 10) + job.run(3 - world % 2, 1000)
    assert before == straight
    assert learned(before) == dict.fromkeys(range(0x4E00, next(count)), 1), "every token once"
    assert job.run(2, 5) == [], "it stays so"
    job.data = data(3)
    assert set(learned(before + job.run(world, 1000)).values()) == {3}


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_steps_that_are_put_back_come_again(batch_rows: int) -> None:
    job = Job(toy({"web": live([["abcdefgh"] * 5, ["ij"] * 9])}), batch_rows, 1)
    straight = Job(job.data, batch_rows, 1).run(1, 10)
    for taken in range(8):
        with TrainLoader(*job.data, SEED, batch_rows, 1) as loader:
            for _ in range(taken + 1):
                next(loader)
            loader.undo_last()
            assert loader.position == batch_rows * taken
            job.state, job.done = json.loads(json.dumps(loader.state_dict())), taken
        assert job.run(2, 2) == straight[taken : taken + 2]


@pytest.mark.parametrize("rank", range(3))
def test_a_rank_orders_the_rows_of_no_other(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    at, asked = MixtureSampler.at, []

    def counted(self: MixtureSampler, positions: np.ndarray) -> Any:
        asked.extend(positions.tolist())
        return at(self, positions)

    monkeypatch.setattr(MixtureSampler, "at", counted)
    take(TrainLoader(*toy({"a": ToyRows(300), "web": live([["abc"], ["de"]])}), SEED, 7, 1, rank, 3), 2)
    assert {position % 3 for position in asked} == {rank}


def test_files_of_a_live_source_are_read_equally_often_whatever_their_size() -> None:
    characters = (chr(0x4E00 + i) for i in itertools.count())
    units = [["".join(itertools.islice(characters, 8)) for _ in range(count)] for count in (600, 30, 30)]
    job = Job(toy({"web": live(units, lane_limit=3)}), 4, 1)
    inputs = 2 * sum(9 * len(unit) for unit in units)  # two epochs
    seen = Counter(
        token for batch in job.run(1, inputs // (4 * 8)) for _, tokens, _ in batch for token in tokens
    )
    for unit in units:
        counts = [seen[ord(character)] for text in unit for character in text]
        assert sum(counts) / len(counts) == pytest.approx(2, rel=0.1)


def test_masks_of_a_live_source_reach_the_labels() -> None:
    data = toy(
        {
            "web": live(
                [[PromptCompletion("abc", "de"), PromptCompletion("f", "ghijk")]], record="prompt_completion"
            )
        }
    )
    rows = [row for batch in Job(data, 2, 1).run(1, 3) for row in batch]
    learned = {chr(label) for _, _, labels in rows for label in labels if label not in (IGNORE, 0)}
    assert learned == set("deghijk")


def test_a_live_source_that_did_not_change_goes_on_where_the_data_changed() -> None:
    texts = [[chr(0x4E00 + 40 * i + j) * 1 for j in range(40)] for i in range(4)]
    source = live([["".join(unit[k : k + 5]) for k in range(0, 40, 5)] for unit in texts])
    job = Job(toy({"a": ToyRows(300), "web": source}), 6, 2)
    before = [row for batch in job.run(2, 3) for row in batch if row[0] == 1]
    job.data = toy({"new": ToyRows(500, 1000), "web": source})
    after = [row for batch in job.run(3, 3, allow_change=True) for row in batch if row[0] == 1]
    straight = [row for batch in Job(toy({"web": source}), 1, 1).run(1, 1) for row in batch]
    assert straight
    seen = [token for _, tokens, _ in before + after for token in tokens if token]
    epoch = sum(len(unit) for unit in texts)
    assert len(set(seen[:epoch])) > 0.9 * len(seen[:epoch]), "nothing was read twice within an epoch"


def test_batches_say_of_which_source_each_row_is() -> None:
    for rank in range(2):
        for step in take(TrainLoader(*two(), SEED, 7, 2, rank, 2), 5):
            for micro, wanted in zip(step.micro_batches, step.sources, strict=True):
                sources = micro.to(CPU).sources
                assert sources is not None and sources.shape == (2, 2)
                assert sources.tolist() == [[number == 0, number == 1] for number in wanted]


def test_of_one_source_nothing_is_said() -> None:
    (step,) = take(TrainLoader(*toy({"a": ToyRows(300)}), SEED, 4, 2), 1)
    assert [micro.sources for micro in step.micro_batches] == [None, None]


def test_ranks_with_fewer_rows_fill_up_with_rows_without_targets() -> None:
    prepared, config = two(document_masks=True)
    steps = [take(TrainLoader(prepared, config, SEED, 7, 2, rank, 3), 4) for rank in range(3)]
    for s in range(4):
        parts = [steps[rank][s] for rank in range(3)]
        assert {len(part.micro_batches) for part in parts} == {2}  # 3 rows in micro-batches of 2
        labels = torch.cat([rows.to(CPU).labels for part in parts for rows in part.micro_batches])
        assert {part.targets for part in parts} == {7 * T} == {int((labels != IGNORE).sum())}
        assert sum(part.own_targets for part in parts) == 7 * T
        assert {part.rows for part in parts} == {7}
        for part in parts:
            filled = torch.from_numpy(part.sources.ravel() < 0)
            own = torch.cat([rows.to(CPU).labels for rows in part.micro_batches])
            assert torch.equal(filled, (own == IGNORE).all(1))
            assert {rows.tokens.shape for rows in part.micro_batches} == {(2, T + 1)}


def test_tokens_that_are_no_targets_are_ignored_and_each_rank_counts_its_own() -> None:
    prepared, config = toy({"a": ToyRows(500, masked=3), "b": ToyRows(500, 1000)})
    ignored_at_all = False
    for step in take(TrainLoader(prepared, config, SEED, 8, 4, 0, 2), 3):
        assert step.targets is None
        labels = torch.cat([rows.to(CPU).labels for rows in step.micro_batches])
        tokens = torch.cat([rows.to(CPU).tokens for rows in step.micro_batches])
        following = tokens + 1  # the streams count
        ignored = (following % 3 == 0) & (torch.from_numpy(step.sources.ravel()) == 0)[:, None]
        assert torch.equal(labels, torch.where(ignored, IGNORE, following))
        assert step.own_targets == int((labels != IGNORE).sum())
        ignored_at_all = ignored_at_all or bool(ignored.any())
    assert ignored_at_all


@pytest.mark.parametrize("document_masks", [False, True])
def test_batches_are_small_on_the_way_and_what_the_model_takes_there(document_masks: bool) -> None:
    prepared, config = two(document_masks=document_masks)
    step = take(TrainLoader(prepared, config, SEED, 4, 2), 1)[0]
    for rows in step.micro_batches:
        assert (rows.tokens.dtype, rows.is_target) == (torch.int32, None)
        assert rows.tokens.is_contiguous()
        assert (rows.to(CPU).documents is not None) == document_masks
    assert step.sources.shape == (2, 2)


def test_document_numbers_of_a_batch_follow_its_end_of_text_tokens(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes(document_masks=True)
    batch = take(TrainLoader(prepared, config, SEED, 4, 4), 1)[0].micro_batches[0].to(CPU)
    wanted = (batch.tokens == prepared.tokenizer.end_of_text_id).cumsum(1)
    assert batch.documents is not None
    assert torch.equal(batch.documents.long(), wanted)
    assert wanted.max() > 0


def test_position_counts_the_rows_handed_out_and_not_those_read_ahead() -> None:
    prepared, config = two()
    with TrainLoader(prepared, config, SEED, 6, 2) as loader:
        assert loader.state_dict()["rows"] == 0
        positions = [loader.position for _ in itertools.islice(loader, 3)]
        assert loader.state_dict()["rows"] == 18
    assert positions == [6, 12, 18]


def test_blocks_and_parts_of_the_order_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Job(two(), 3, 2).run(2, 60)
    monkeypatch.setattr(module, "ORDER_ROWS", 10)
    monkeypatch.setattr(module, "BLOCK_TOKENS", 7 * T)
    assert Job(two(), 3, 2).run(2, 60) == wanted


def test_a_run_goes_on_with_another_batch_size() -> None:
    straight = [row for batch in Job(two(), 6, 2).run(1, 8) for row in batch]
    job = Job(two(), 6, 2)
    rows = [row for batch in job.run(1, 4) for row in batch]
    job.batch_rows = 4
    assert rows + [row for batch in job.run(2, 6) for row in batch] == straight


def test_rows_have_hashes_where_that_is_asked_for() -> None:
    prepared, config = two()
    steps = [take(TrainLoader(prepared, config, SEED, 5, 1, rank, 2, hash_rows=True), 3) for rank in range(2)]
    alone = take(TrainLoader(prepared, config, SEED, 5, 1, hash_rows=True), 3)
    for s in range(3):
        parts = [steps[rank][s].hashes for rank in range(2)]
        assert all(part is not None for part in parts)
        together = sorted(value for part in parts if part is not None for value in part.tolist() if value)
        whole = alone[s].hashes
        assert whole is not None
        assert together == sorted(whole.tolist())
        assert 0 < alone[s].hash < 2**63
    assert len({step.hash for step in alone}) == 3
    assert take(TrainLoader(prepared, config, SEED, 5, 1), 1)[0].hash == 0


def curriculum(*stages: tuple[int, dict[str, float]]) -> list[schema.Stage]:
    return [schema.Stage(step=step, weights=weights) for step, weights in stages]


def test_weights_change_at_their_steps_and_lose_no_row() -> None:
    stages = curriculum((5, {"small": 9.0}), (15, {"large": 0.0}))
    batches = Job(two(curriculum=stages), 50, 50).run(1, 18)
    shares = [np.mean([source == 1 for source, _, _ in batch]) for batch in batches]
    assert abs(np.mean(shares[:4]) - 0.25) < 0.08
    assert abs(np.mean(shares[4:14]) - 0.75) < 0.08
    assert shares[14:] == [1.0] * 4
    small = ToyRows(900, 10_000)
    epoch = [tokens for batch in batches for source, tokens, _ in batch if source == 1][: small.row_count(T)]
    assert sorted(epoch) == sorted(small.rows(np.arange(small.row_count(T)), T)[:, :-1].tolist())


def test_a_stage_begins_at_its_step_also_after_the_batch_size_changed() -> None:
    job = Job(two(curriculum=curriculum((6, {"large": 0.0}))), 10, 10)
    job.run(1, 2)
    job.batch_rows = 4
    assert {source for batch in job.run(1, 3) for source, _, _ in batch} == {0, 1}
    assert {source for batch in job.run(1, 3) for source, _, _ in batch} == {1}


def test_other_weights_are_refused_and_hold_from_there_where_they_are_allowed() -> None:
    job = Job(two(), 6, 6)
    before = [row for batch in job.run(1, 4) for row in batch]
    job.data = toy({"large": ToyRows(4000), "small": ToyRows(900, 10_000)}, {"small": 3.0})
    with pytest.raises(UserError, match=r"other weights: large 3 -> 1, small 1 -> 3; .*--allow-data-change"):
        job.run(1, 1)
    after = [row for batch in job.run(1, 40, allow_change=True) for row in batch]
    assert job.state is not None
    assert [segment[0] for segment in job.state["segments"]] == [0, 24]
    assert [change["rows"] for change in job.state["changes"]] == [24]
    assert abs(np.mean([source == 1 for source, _, _ in after]) - 0.75) < 0.1
    small = ToyRows(900, 10_000)
    count = small.row_count(T)
    epoch = [tokens for source, tokens, _ in before + after if source == 1][:count]
    assert sorted(epoch) == sorted(small.rows(np.arange(count), T)[:, :-1].tolist())
    job.run(1, 1)  # from here on these are the weights


def test_another_seed_is_refused_whatever_is_allowed() -> None:
    prepared, config = two()
    state = TrainLoader(prepared, config, SEED, 6, 2).state_dict()
    with pytest.raises(UserError, match=r"run.seed was 5, is 6; restore"):
        TrainLoader(prepared, config, 6, 6, 2).load_state_dict(state, 0, allow_change=True)


def test_who_goes_on_with_other_data_is_told_which_sources_begin_anew() -> None:
    one, small = ToyRows(4000), ToyRows(900, 10_000)
    job = Job(toy({"one": one, "small": small}), 10, 5)
    job.run(1, 8)
    prepared, config = toy({"one": ToyRows(4008), "new": ToyRows(600, 20_000), "small": small})
    assert job.state is not None
    told = TrainLoader(prepared, config, SEED, 10, 5).load_state_dict(job.state, job.done, allow_change=True)
    assert told[-2:] == ["source one begins anew, whatever was read of it before", "source new begins anew"]


def test_other_data_is_refused_with_the_difference_and_goes_on_where_it_is_allowed() -> None:
    one, small = ToyRows(4000), ToyRows(900, 10_000)
    job = Job(toy({"one": one, "small": small}), 10, 5)
    before = [row for batch in job.run(2, 8) for row in batch]
    job.data = toy({"new": ToyRows(600, 20_000), "small": small})
    with pytest.raises(UserError, match=r"data.sources were one, small, are new, small"):
        job.run(1, 1)
    after = [row for batch in job.run(3, 30, allow_change=True) for row in batch]
    count = small.row_count(T)
    epoch = [row[1] for row in before if row[0] == 1] + [row[1] for row in after if row[0] == 1]
    assert sorted(epoch[:count]) == sorted(small.rows(np.arange(count), T)[:, :-1].tolist())
    first_new = [row[1] for row in after if row[0] == 0][: job.data[0].sources[0].stored.row_count(T)]
    assert len({tuple(row) for row in first_new}) == len(first_new)
    assert job.state is not None
    (change,) = job.state["changes"]
    assert (change["rows"], change["differences"]) == (80, ["data.sources were one, small, are new, small"])
    straight = Job(job.data, 10, 5)
    straight.state, straight.done = job.state, job.done
    assert job.run(4, 5) == straight.run(1, 5)


def test_text_that_was_exchanged_begins_anew_under_another_order() -> None:
    job = Job(toy({"a": ToyRows(300), "b": ToyRows(300, 1000)}), 10, 5)
    job.run(1, 3)
    job.data = toy({"a": ToyRows(300, 5000), "b": ToyRows(300, 1000)})
    with pytest.raises(UserError, match="source a has other text of the same length"):
        job.run(1, 1)
    job.run(1, 1, allow_change=True)
    assert job.state is not None
    assert (job.state["shuffle_ids"], job.state["consumed_before"][0], job.state["start"]) == ([2, 1], 0, 30)
    assert job.state["consumed_before"][1] > 0


def test_a_source_that_was_gone_and_comes_back_is_read_in_another_order() -> None:
    one, other = ToyRows(800), ToyRows(400, 1000)
    job = Job(toy({"a": one, "b": other}), 8, 4)
    first = [row for batch in job.run(1, 2) for row in batch if row[0] == 1]
    job.data = toy({"a": one})
    job.run(1, 1, allow_change=True)
    job.data = toy({"a": one, "b": other})
    again = [row for batch in job.run(1, 2, allow_change=True) for row in batch if row[0] == 1]
    assert job.state is not None
    assert (job.state["shuffle_ids"], job.state["next_shuffle_id"]) == ([0, 2], 3)
    assert [row[1] for row in again[:4]] != [row[1] for row in first[:4]]


def test_a_live_source_goes_on_with_rows_of_another_length() -> None:
    letters = [chr(0x4E00 + i) for i in range(600)]
    texts = [
        ["".join(letters[k : k + 15]) for k in range(first, first + 150, 15)] for first in (0, 150, 300, 450)
    ]

    def job_of(length: int) -> tuple[Any, schema.Data]:
        source = live(texts, sequence_length=length, max_epochs=1)
        return toy({"a": ToyRows(300), "web": source}, sequence_length=length, max_epochs={"web": 1})

    job = Job(job_of(8), 6, 2)
    rows = job.run(2, 6)
    job.data = job_of(20)
    rows += job.run(3, 50, allow_change=True)
    labels = [label for batch in rows for source, _, labels in batch if source == 1 for label in labels]
    assert sorted(label for label in labels if label > 0) == sorted(map(ord, letters))


def test_a_source_under_another_name_goes_on() -> None:
    rows = ToyRows(400)
    job = Job(toy({"gone": ToyRows(300, 1000), "a": rows}), 8, 4)
    before = [row[1] for batch in job.run(1, 4) for row in batch if row[0] == 1]
    job.data = toy({"b": rows})
    after = [row[1] for batch in job.run(1, 9, allow_change=True) for row in batch]
    epoch = (before + after)[: rows.row_count(T)]
    assert len({tuple(row) for row in epoch}) == len(epoch)


def test_everything_that_changed_is_recorded() -> None:
    job = Job(two(), 8, 4)
    job.run(1, 2)
    job.data = toy({"large": ToyRows(4000), "small": ToyRows(800, 10_000)}, {"large": 1.0})
    other = ["data.curriculum.0.step: 5 -> 6"]
    job.run(1, 1, allow_change=True, other_settings=other)
    assert job.state is not None
    assert job.state["changes"][0]["differences"] == [
        "source small had 900 training tokens, has 800",
        "the mixture has other weights: large 3 -> 1",
        *other,
    ]


def test_a_run_that_needs_more_epochs_than_allowed_is_refused_with_the_numbers() -> None:
    prepared, config = toy({"a": ToyRows(801), "b": ToyRows(8001, 1000)}, max_epochs={"a": 2})
    loader = TrainLoader(prepared, config, SEED, 10, 5)
    sampler = MixtureSampler(SEED, [100, 1000], [1.0, 1.0])
    last = next(s for s in itertools.count() if sampler.consumed(10 * (s + 1))[0] > 200)
    loader.check_epochs(last)
    with pytest.raises(UserError, match=f"have 200; it lasts until step {last}"):
        loader.check_epochs(last + 1)
    rows = itertools.islice(loader, last)
    assert sum(int((step.sources == 0).sum()) for step in rows) <= 200
    loader.close()


def test_a_source_lasts_for_fewer_steps_once_rows_of_it_are_left_out() -> None:
    prepared, config = toy({"a": ToyRows(801)}, max_epochs={"a": 2})
    with TrainLoader(prepared, config, SEED, 10, 5) as loader:
        before, start = loader.first_shortage, loader.state_dict()
        loader.omit((20, 50))
        after = loader.first_shortage
        loader.rewind(start, 0)
        assert before is not None and after is not None and loader.first_shortage == before
        assert after.last_step == before.last_step - 3


def test_a_source_that_runs_dry_in_mid_run_says_so() -> None:
    prepared, config = toy({"a": ToyRows(81)}, max_epochs={"a": 2})
    with (
        TrainLoader(prepared, config, SEED, 10, 5) as loader,
        pytest.raises(RunFault, match="source a has run dry: it was read 2 times"),
    ):
        for _ in loader:
            pass


def test_a_damaged_block_stops_the_run_with_its_name(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    (path,) = (folders(prepared)["text-0"] / "train").glob("*.bin")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with (
        TrainLoader(prepared, config, SEED, 6, 2) as loader,
        pytest.raises(UserError, match=f"{path.name}: block 0"),
    ):
        next(loader)


def test_close_stops_reading_ahead() -> None:
    prepared, config = two()
    loader = TrainLoader(prepared, config, SEED, 6, 2)
    next(loader)
    loader.close()
    loader.close()
    assert loader._ahead is not None
    assert not loader._ahead._thread.is_alive()


def children() -> set[str]:
    """The processes that this one has started and that have not ended."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_close_ends_the_processes_that_tokenize() -> None:
    resource_tracker.ensure_running()  # a process of Python's own, which stays
    before = children()
    loader = TrainLoader(*toy({"web": live([["abcdefgh"] * 5])}), SEED, 2, 1, workers=1)
    next(loader)
    started = children() - before
    loader.close()
    assert started
    assert not started & children()


def test_processes_that_tokenize_change_no_row_and_no_state_at_whatever_step_they_begin() -> None:
    texts = [[f"{split}:{record}" * 3 for record in range(9)] for split in range(5)]

    def loader(workers: int) -> TrainLoader:
        sources = {"a": ToyRows(300), "web": live(texts, lane_limit=3), "few": live([["abcdefgh"] * 5])}
        data = toy(sources, {"a": 1.0, "web": 2.0, "few": 0.1})
        return TrainLoader(*data, SEED, 5, 1, 1, 2, workers=workers)

    with loader(0) as plain:
        straight = [real_rows(step) for step in take(plain, 30)]
        end = plain.state_dict()
    with loader(2) as begun:
        rows = [real_rows(step) for step in take(begun, 11)]
        state = begun.state_dict()
    with loader(1) as resumed:
        resumed.load_state_dict(state, 11)
        rows += [real_rows(step) for step in take(resumed, 19)]
        assert (rows, resumed.state_dict()) == (straight, end)


def test_notes_of_live_sources_reach_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    take_row = LiveRows.take

    def noted(self: LiveRows, source: int, lane: int) -> Row:
        return take_row(self, source, lane)._replace(notes=(f"of lane {lane}",))

    monkeypatch.setattr(LiveRows, "take", noted)
    with TrainLoader(*toy({"web": live([["abcdefgh"] * 5] * 2)}), SEED, 2, 1) as loader:
        next(loader)
        assert sorted(loader.notes) == ["of lane 0", "of lane 1"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_lie_in_pinned_memory_where_there_is_a_gpu() -> None:
    prepared, config = two(document_masks=True)
    steps = take(TrainLoader(prepared, config, SEED, 6, 2), 3)
    assert all(rows.tokens.is_pinned() for rows in steps[-1].micro_batches)


def test_the_first_lane_at_its_end_is_told() -> None:
    data = toy({"web": live([["abcdefgh"] * 9, ["ij"]], max_epochs=1)}, max_epochs={"web": 1})
    with TrainLoader(*data, SEED, 2, 1) as loader:
        for _ in range(4):
            next(loader)
        (note,) = loader.notes
        assert note.startswith("source web: lane ")
        assert note.endswith("(max_epochs 1); its rows hold no targets until all lanes are")
        assert loader.lanes_left == {0: 1}


def test_what_was_seen_of_each_source_is_what_was_handed_out_over_resumes():
    prepared, config = two()
    loader = TrainLoader(prepared, config, SEED, 6, 2, 1, 2)
    halves = [TrainLoader(prepared, config, SEED, 6, 2, rank, 2) for rank in range(2)]
    counts = Counter(row[0] for each in halves for step in take(each, 50) for row in real_rows(step))
    assert halves[0].seen() == halves[1].seen()
    assert {name: tokens for name, (tokens, _) in halves[0].seen().items()} == {
        "large": counts[0] * T, "small": counts[1] * T
    }  # fmt: skip
    assert [size for _, size in halves[0].seen().values()] == [s.stored.period for s in prepared.sources]
    loader.load_state_dict(halves[1].state_dict(lambda text: [text]), 50)
    assert loader.seen() == halves[1].seen()
