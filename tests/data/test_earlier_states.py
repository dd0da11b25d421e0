"""Positions in checkpoints of version 2 of the order: read on as they were, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llmkit.config import schema
from llmkit.data.loader import TrainLoader
from llmkit.data.sampler import MixtureSampler
from llmkit.errors import UserError
from tests.data.live.fakes import live
from tests.data.test_loader import SEED, Job
from tests.data.toy import T, ToyRows, toy

Data = tuple[Any, schema.Data]


def as_version_2(data: Data, rows: int, cursors: list[Any] | None = None) -> dict[str, Any]:
    """The position after so many rows, as that version wrote it."""
    state = TrainLoader(*data, SEED, 6, 6).state_dict()
    del state["fingerprint"]["packing"], state["fingerprint"]["lanes"]
    return state | {"version": 2, "rows": rows, **({"cursors": cursors} if cursors else {})}


def test_stored_tokens_go_on_in_the_order_of_then() -> None:
    sources = {"a": ToyRows(403), "b": ToyRows(95, 1000)}
    job = Job(toy(sources, {"a": 3.0}), 6, 6)
    job.state, job.done = as_version_2(job.data, 60), 10
    got = [row for batch in job.run(2, 60) for row in batch]
    whole_rows = [402 // T, 94 // T]  # what did not fill a row was left out then
    sampler = MixtureSampler(SEED, whole_rows, [3.0, 1.0], version=2)
    source, _, row = sampler.rows(60, len(got))
    for (number, inputs, _), i, k in zip(got, source.tolist(), row.tolist(), strict=True):
        assert (number, inputs) == (i, list(sources.values())[i].stream[k * T : (k + 1) * T].tolist())
    assert job.state["version"] == 2
    straight = Job(job.data, 6, 6)
    straight.state, straight.done = as_version_2(job.data, 60), 10
    assert [row for batch in straight.run(1, 70) for row in batch] == [
        *got, *(row for batch in job.run(3, 10) for row in batch),
    ]  # fmt: skip


def test_a_live_source_alone_goes_on_as_it_is_read_in_the_same_order_today() -> None:
    data = toy({"web": live([["abcdefgh"] * 5, ["ij"] * 9])})
    straight = Job(data, 4, 2)
    rows = straight.run(1, 9)
    job = Job(data, 4, 2)
    job.run(1, 4)
    assert job.state is not None
    job.state["version"] = 2
    del job.state["fingerprint"]["packing"], job.state["fingerprint"]["lanes"]
    assert job.run(2, 5) == rows[4:]
    assert job.state["version"] == 3


def test_a_mixture_with_a_live_source_is_refused_and_goes_on_where_it_is_allowed() -> None:
    data = toy({"a": ToyRows(300), "web": live([["abcdefgh"] * 5, ["ij"] * 9])})
    job = Job(data, 4, 2)
    job.run(1, 4)
    assert job.state is not None
    cursors = job.state["cursors"]
    job.state, job.done = as_version_2(data, 16, cursors), 4
    with pytest.raises(UserError, match=r"earlier version of llmkit, which read live .*--allow-data-change"):
        job.run(1, 1)
    loader = TrainLoader(*data, SEED, 4, 2)
    told = loader.load_state_dict(job.state, 4, allow_change=True)
    same = "its text is the same, but its rows are cut or ordered otherwise from here on"
    assert told[-1] == f"source a begins anew, whatever was read of it before: {same}"
    state = loader.state_dict()
    assert (state["version"], state["start"], state["cursors"]) == (3, 16, cursors)
    assert state["shuffle_ids"] == [2, 1]


def test_another_packing_cuts_other_rows_and_begins_anew() -> None:
    job = Job(toy({"a": ToyRows(100)}), 4, 2)
    job.run(1, 4)
    job.data = toy({"a": ToyRows(100)}, packing="best_fit")
    with pytest.raises(UserError, match=r"data.packing was concatenate, is best_fit"):
        job.run(1, 1)
    job.run(1, 1, allow_change=True)
    assert job.state is not None
    assert (job.state["start"], job.state["consumed_before"]) == (16, [0])


def test_rows_that_documents_were_laid_into_are_the_same_ones_in_every_epoch() -> None:
    data = toy({"a": ToyRows(100)}, packing="best_fit")  # 12 rows and 3 tokens
    rows = [row for batch in Job(data, 13, 13).run(1, 3) for row in batch]
    epochs = [sorted(inputs for _, inputs, _ in rows[first : first + 13]) for first in (0, 13, 26)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert [inputs[0] for inputs in epochs[0]] == np.arange(1, 105, T).tolist()
    assert json.dumps(epochs[0][-1]) == json.dumps([*range(97, 101), *range(2, 6)])
