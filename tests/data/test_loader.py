from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.batch import IGNORE
from llmkit.config import schema
from llmkit.data import loader as module
from llmkit.data.loader import Step, TrainLoader, document_numbers
from llmkit.data.order import Order
from llmkit.data.prepared import Prepared
from llmkit.errors import UserError

Build = Callable[..., tuple[Prepared, schema.Data]]
T = 16  # sequence length of `prepared_bytes`


def take(loader: TrainLoader, count: int) -> list[Step]:
    with loader:
        return list(itertools.islice(loader, count))


def real_rows(step: Step) -> list[tuple[int, list[int], list[int]]]:
    """(source, inputs, labels) of a rank's rows that do not only fill."""
    rows: Iterator[Any] = (
        (int(source), tokens.tolist(), labels.tolist())
        for batch, sources in zip(step.micro_batches, step.sources, strict=True)
        for tokens, labels, source in zip(batch.tokens, batch.labels, sources, strict=True)
    )
    return [row for row in rows if row[0] >= 0]


def global_batches(
    build: Build, batch_rows: int, micro: int, world: int, steps: int, position: int = 0
) -> Any:
    """The rows of each global batch in the order of their positions, put together from all ranks."""
    prepared, config = build()
    ranks = [
        take(TrainLoader(prepared, config, 5, batch_rows, micro, position, rank, world), steps)
        for rank in range(world)
    ]
    batches = []
    for s in range(steps):
        queues = [iter(real_rows(ranks[rank][s])) for rank in range(world)]
        first = position + s * batch_rows
        batches.append([next(queues[g % world]) for g in range(first, first + batch_rows)])
        assert all(next(queue, None) is None for queue in queues)
    return batches


def test_rows_are_those_of_the_order(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    readers = [source.reader for source in prepared.train]
    order = Order(5, [reader.row_count(T) for reader in readers], [3.0, 1.0])
    source, _, row = order.rows(0, 40)
    rows = [row for step in take(TrainLoader(prepared, config, 5, 8, 4), 5) for row in real_rows(step)]
    for (got_source, tokens, labels), i, k in zip(rows, source, row, strict=True):
        text = readers[i].read(k * T, (k + 1) * T + 1).tolist()
        assert (got_source, tokens, labels) == (i, text[:-1], text[1:])


def test_an_epoch_holds_every_row_of_a_source_once(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    reader = prepared.train[1].reader
    count = reader.row_count(T)
    steps = take(TrainLoader(prepared, config, 5, 8, 8), count)
    rows = [tokens for step in steps for source, tokens, _ in real_rows(step) if source == 1][:count]
    assert sorted(rows) == sorted(reader.rows(np.arange(count), T)[:, :-1].tolist())


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize(("batch_rows", "micro"), [(6, 1), (7, 2), (2, 1)])
def test_the_global_batch_is_the_same_for_every_number_of_ranks(
    prepared_bytes: Build, batch_rows: int, micro: int, world: int
) -> None:
    alone = global_batches(prepared_bytes, batch_rows, micro, 1, 5, position=3)
    assert global_batches(prepared_bytes, batch_rows, micro, world, 5, position=3) == alone


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_the_batch_is_the_same_for_every_micro_batch_size(prepared_bytes: Build, micro: int) -> None:
    assert global_batches(prepared_bytes, 8, micro, 1, 3) == global_batches(prepared_bytes, 8, 8, 1, 3)


def test_ranks_with_fewer_rows_fill_up_with_rows_without_targets(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes(document_masks=True)
    steps = [take(TrainLoader(prepared, config, 5, 7, 2, 0, rank, 3), 4) for rank in range(3)]
    for s in range(4):
        parts = [steps[rank][s] for rank in range(3)]
        assert {len(part.micro_batches) for part in parts} == {2}  # 3 rows in micro-batches of 2
        labels = torch.cat([batch.labels for part in parts for batch in part.micro_batches])
        assert {part.targets for part in parts} == {7 * T} == {int((labels != IGNORE).sum())}
        assert {part.rows for part in parts} == {7}
        for part in parts:
            filled = torch.from_numpy(part.sources.ravel() < 0)
            assert torch.equal(filled, (torch.cat([b.labels for b in part.micro_batches]) == IGNORE).all(1))
            assert {batch.tokens.shape for batch in part.micro_batches} == {(2, T)}


@pytest.mark.parametrize("document_masks", [False, True])
def test_batches_are_what_the_model_takes(prepared_bytes: Build, document_masks: bool) -> None:
    prepared, config = prepared_bytes(document_masks=document_masks)
    step = take(TrainLoader(prepared, config, 5, 4, 2), 1)[0]
    for batch in step.micro_batches:
        assert (batch.tokens.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
        assert batch.tokens.is_contiguous()
        assert batch.labels.is_contiguous()
        if document_masks:
            assert batch.documents is not None
            assert batch.documents.dtype == torch.int32
        else:
            assert batch.documents is None
    assert step.sources.shape == (2, 2)


def test_end_of_text_opens_the_next_document() -> None:
    tokens = np.array([[9, 0, 5, 5, 0, 0, 7], [0, 1, 1, 1, 1, 1, 0]])
    assert document_numbers(tokens, 0).tolist() == [[0, 1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2]]


def test_document_numbers_of_a_batch_follow_its_end_of_text_tokens(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes(document_masks=True)
    batch = take(TrainLoader(prepared, config, 5, 4, 4), 1)[0].micro_batches[0]
    wanted = (batch.tokens == prepared.tokenizer.end_of_text_id).cumsum(1)
    assert batch.documents is not None
    assert torch.equal(batch.documents.long(), wanted)
    assert wanted.max() > 0


def test_position_counts_the_rows_handed_out_and_not_those_read_ahead(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    with TrainLoader(prepared, config, 5, 6, 2, position=12) as loader:
        assert loader.state()["rows"] == 12
        positions = [loader.position for _ in itertools.islice(loader, 3)]
    assert positions == [18, 24, 30]


def test_blocks_and_parts_of_the_order_leave_no_seam(
    prepared_bytes: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = global_batches(prepared_bytes, 3, 2, 2, 60)
    monkeypatch.setattr(module, "ORDER_ROWS", 10)
    monkeypatch.setattr(module, "BLOCK_TOKENS", 7 * T)
    assert global_batches(prepared_bytes, 3, 2, 2, 60) == wanted


@pytest.mark.parametrize("stops", [[9], [1, 2, 8]])
def test_a_resumed_run_reads_what_a_straight_one_reads(prepared_bytes: Build, stops: list[int]) -> None:
    prepared, config = prepared_bytes()
    straight = [real_rows(step) for step in take(TrainLoader(prepared, config, 5, 6, 2), 12)]
    resumed: list[Any] = []
    state: dict[str, Any] | None = None
    for stop in [*stops, 12]:
        with TrainLoader(prepared, config, 5, 6, 2) as loader:
            if state is not None:
                loader.load_state(state)
            resumed += [real_rows(step) for step in itertools.islice(loader, stop - len(resumed))]
            state = json.loads(json.dumps(loader.state()))
    assert resumed == straight


def test_a_run_goes_on_with_another_number_of_ranks(prepared_bytes: Build) -> None:
    straight = global_batches(prepared_bytes, 6, 2, 1, 9)
    assert global_batches(prepared_bytes, 6, 2, 3, 4, position=30) == straight[5:]


def test_a_run_goes_on_with_another_batch_size(prepared_bytes: Build) -> None:
    straight = [row for batch in global_batches(prepared_bytes, 6, 2, 1, 8) for row in batch]
    others = [row for batch in global_batches(prepared_bytes, 4, 2, 2, 6, position=24) for row in batch]
    assert others == straight[24:]


def test_the_state_is_equal_on_all_ranks(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    states = []
    for rank in range(3):
        with TrainLoader(prepared, config, 5, 7, 2, 0, rank, 3) as loader:
            take_one = next(loader)
            assert take_one.rows == 7
            states.append(json.dumps(loader.state()))
    assert len(set(states)) == 1
    assert json.loads(states[0])["rows"] == 7


def test_new_weights_hold_from_the_resumed_position_and_lose_no_row(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    with TrainLoader(prepared, config, 5, 6, 6) as loader:
        before = [row for step in itertools.islice(loader, 4) for row in real_rows(step)]
        state = loader.state()
    sources = [config.sources[0], config.sources[1].model_copy(update={"weight": 9.0})]
    changed, changed_config = prepared_bytes(sources=sources)
    with TrainLoader(changed, changed_config, 5, 6, 6) as loader:
        loader.load_state(state)
        after = [row for step in itertools.islice(loader, 40) for row in real_rows(step)]
        again = loader.state()
    assert [segment[0] for segment in again["segments"]] == [0, 24]
    share = sum(source == 1 for source, _, _ in after) / len(after)
    assert abs(share - 0.75) < 0.1
    count = prepared.train[1].reader.row_count(T)
    first_epoch = [tokens for source, tokens, _ in before + after if source == 1][:count]
    assert sorted(first_epoch) == sorted(prepared.train[1].reader.rows(np.arange(count), T)[:, :-1].tolist())
    with TrainLoader(changed, changed_config, 5, 6, 6) as loader:  # the third run keeps both segments
        loader.load_state(again)
        assert loader.state() == again


def test_other_data_is_refused_before_a_run_goes_on(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    with TrainLoader(prepared, config, 5, 6, 2) as loader:
        state = loader.state()
        loader.check_state(state)
    with (
        TrainLoader(prepared, config, 6, 6, 2) as loader,
        pytest.raises(UserError, match=r"run.seed was 5, is 6; restore"),
    ):
        loader.load_state(state)


def test_a_damaged_block_stops_the_run_with_its_name(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    path = prepared.folder / "train" / "text-0" / "text-0-00000.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with (
        TrainLoader(prepared, config, 5, 6, 2) as loader,
        pytest.raises(UserError, match=r"text-0-00000.bin: block 0"),
    ):
        next(loader)


def test_close_stops_reading_ahead(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes()
    loader = TrainLoader(prepared, config, 5, 6, 2)
    next(loader)
    loader.close()
    loader.close()
    assert loader._ahead is not None
    assert not loader._ahead._thread.is_alive()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_lie_in_pinned_memory_where_there_is_a_gpu(prepared_bytes: Build) -> None:
    prepared, config = prepared_bytes(document_masks=True)
    steps = take(TrainLoader(prepared, config, 5, 6, 2), 3)
    assert all(t is not None and t.is_pinned() for batch in steps[-1].micro_batches for t in batch)
