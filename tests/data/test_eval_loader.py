from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmkit.batch import IGNORE, Batch
from llmkit.config import schema
from llmkit.data.eval_loader import EvalLoader
from llmkit.data.prepared import PreparedData

Build = Callable[..., tuple[PreparedData, schema.Data]]
T = 16


def made(rows: EvalLoader) -> list[Batch]:
    """The batches that a model gets."""
    return [each.to(torch.device("cpu")) for each in rows]


def streams(prepared: PreparedData) -> list[list[int]]:
    return [rows.read(0, rows.tokens).tolist() for rows in prepared.heldout.values()]


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_every_held_out_token_is_a_target_once_and_in_order(prepared_bytes: Build, batch_rows: int) -> None:
    prepared, _ = prepared_bytes()
    batches = made(EvalLoader(prepared, batch_rows))
    labels = torch.cat([batch.labels for batch in batches]).ravel()
    wanted = [token for stream in streams(prepared) for token in stream[1:]]
    assert labels[labels != IGNORE].tolist() == wanted


def test_inputs_are_the_tokens_before_the_targets(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    batches = made(EvalLoader(prepared, 4))
    tokens = torch.cat([batch.tokens for batch in batches]).ravel()
    labels = torch.cat([batch.labels for batch in batches]).ravel()
    wanted = [token for stream in streams(prepared) for token in stream[:-1]]
    assert tokens[labels != IGNORE].tolist() == wanted


def test_a_stream_opens_with_end_of_text_and_ends_with_it_as_a_target(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    end = prepared.tokenizer.end_of_text_id
    assert all((stream[0], stream[-1]) == (end, end) for stream in streams(prepared))


def test_all_batches_have_one_shape_and_type(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    heldout = EvalLoader(prepared, 7)
    batches = made(heldout)
    assert len(batches) == len(heldout)
    assert {(batch.tokens.shape, batch.tokens.dtype) for batch in batches} == {((7, T), torch.int64)}
    assert {(batch.labels.shape, batch.labels.dtype) for batch in batches} == {((7, T), torch.int64)}


def test_sources_do_not_share_a_row(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    first = -(-(next(iter(prepared.heldout.values())).tokens - 1) // T)  # rows of the first source
    rows = torch.cat([batch.tokens for batch in made(EvalLoader(prepared, 1))])
    assert rows[first].tolist() == streams(prepared)[1][:T]


@pytest.mark.parametrize("world", [2, 3, 100])
def test_ranks_share_the_rows_and_have_as_many_batches(prepared_bytes: Build, world: int) -> None:
    prepared, _ = prepared_bytes()
    alone = torch.cat([batch.labels for batch in made(EvalLoader(prepared, 1))])
    parts = [made(EvalLoader(prepared, 2, rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    rows = [torch.cat([batch.labels for batch in part]) for part in parts]
    together = torch.stack(rows, dim=1).reshape(-1, T)  # row g is row g // world of rank g % world
    assert torch.equal(together[: len(alone)], alone)
    assert (together[len(alone) :] == IGNORE).all()


@pytest.mark.parametrize(("world", "batch_rows"), [(1, 4), (2, 3), (3, 1), (100, 2)])
def test_the_rows_of_each_source_are_known_on_every_rank(
    prepared_bytes: Build, world: int, batch_rows: int
) -> None:
    """The labels of a source's rows, over all ranks, are its stream."""
    prepared, _ = prepared_bytes()
    ranks = [EvalLoader(prepared, batch_rows, rank, world) for rank in range(world)]
    labels = [torch.cat([batch.labels for batch in made(rank)]) for rank in ranks]
    for number, stream in enumerate(streams(prepared)):
        parts = [rank.sources[number] for rank in ranks]
        found = [label for part, rows in zip(parts, labels, strict=True) for label in rows[part.rows].ravel()]
        assert sorted(int(each) for each in found if each != IGNORE) == sorted(stream[1:])
        assert {(part.name, part.targets) for part in parts} == {
            (list(prepared.heldout)[number], len(stream) - 1)
        }
        assert parts[0].text_bytes == list(prepared.heldout.values())[number].index.text_bytes


def test_it_can_be_read_again(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    heldout = EvalLoader(prepared, 4)
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(made(heldout), made(heldout), strict=True))


def test_totals_are_those_of_all_ranks(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes()
    for rank in range(2):
        heldout = EvalLoader(prepared, 4, rank, 2)
        assert heldout.targets == sum(len(stream) - 1 for stream in streams(prepared))
        assert heldout.text_bytes == prepared.heldout_bytes
        # With bytes as tokens, all targets but the end of each document are the text.
        documents = sum(rows.index.documents for rows in prepared.heldout.values())
        assert heldout.targets == heldout.text_bytes + documents


def test_document_masks_number_the_documents_of_each_row(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes(document_masks=True)
    for batch in made(EvalLoader(prepared, 4)):
        assert batch.documents is not None
        wanted = (batch.tokens == prepared.tokenizer.end_of_text_id).cumsum(1)
        assert np.array_equal(batch.documents.numpy(), wanted.numpy())


def test_nothing_held_out_gives_no_batches(prepared_bytes: Build) -> None:
    prepared, _ = prepared_bytes(validation_fraction=0.0)
    assert (len(EvalLoader(prepared, 4)), made(EvalLoader(prepared, 4))) == (0, [])


def test_memory_does_not_grow_with_the_rows() -> None:
    tokens = np.arange(1_000_000, dtype=np.int32)
    reader = SimpleNamespace(
        tokens=tokens.size, read=lambda start, stop: tokens[start:stop], read_targets=lambda start, stop: None
    )
    prepared: Any = SimpleNamespace(
        sources=[SimpleNamespace(heldout=reader, heldout_reference=None)] * 2,
        heldout_bytes=1,
        heldout_targets=1,
        sequence_length=T,
        document_masks=False,
        tokenizer=SimpleNamespace(end_of_text_id=0),
        has_pairs=False,
    )
    rows = 2 * (tokens.size // T)
    tracemalloc.start()
    heldout = EvalLoader(prepared, 1, rows - 1, rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    (last,) = made(heldout)
    assert last.tokens.tolist() == [tokens[-T:].tolist()]
