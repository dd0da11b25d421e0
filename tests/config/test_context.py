"""Which positions of a row the ranks have that share it, by which form, and what they cannot share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest

from llmkit.config.context import context_form, row_pieces
from llmkit.config.load import load
from llmkit.plan import resolve_plan

Write = Callable[..., str]
Refused = Callable[..., str]
SIZE = "parallel.context_parallel_size"


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("form", ["ulysses", "ring"])
def test_each_position_is_that_of_one_rank_and_all_have_as_many(size: int, form: str) -> None:
    for length in range(2 * size, 6 * size):
        pieces = row_pieces(length, size, form)
        held = [list(chain.from_iterable(range(*each) for each in ranges)) for ranges in pieces]
        assert sorted(chain.from_iterable(held)) == list(range(length))
        assert max(map(len, held)) - min(map(len, held)) <= 1 and min(map(len, held)) > 0


def test_in_a_ring_all_ranks_have_as_many_pairs_of_query_and_key() -> None:
    pieces = row_pieces(64, 4, "ring")
    assert pieces[1] == ((8, 16), (48, 56))
    pairs = [sum(sum(range(start + 1, stop + 1)) for start, stop in ranges) for ranges in pieces]
    assert len(set(pairs)) == 1
    consecutive = [sum(range(start + 1, stop + 1)) for ((start, stop),) in row_pieces(64, 4, "ulysses")]
    assert consecutive[-1] > 6 * consecutive[0]


@pytest.mark.parametrize(
    ("overrides", "form"),
    [
        ([f"{SIZE}=2"], "ulysses"),
        ([f"{SIZE}=4"], "ulysses"),  # of 2 key and value heads each is then sent twice
        ([f"{SIZE}=2", "parallel.tensor_parallel_size=2"], "ulysses"),
        ([f"{SIZE}=3"], "ring"),
        ([f"{SIZE}=4", "parallel.tensor_parallel_size=2"], "ring"),
        ([f"{SIZE}=2", "parallel.context_parallel_form=ring"], "ring"),
    ],
)
def test_the_form_is_ulysses_where_each_rank_gets_heads(
    write: Write, overrides: list[str], form: str
) -> None:
    loaded = load(write(), overrides)
    assert context_form(loaded.config) == form
    layout = resolve_plan(loaded).layout
    assert (layout.context_parallel_form, layout.data_parallel_size) == (form, 1)
    assert layout.world_size == layout.replicas * layout.tensor_parallel_size


def test_rows_are_dealt_to_the_ranks_that_are_left(write: Write) -> None:
    overrides = [f"{SIZE}=2", "parallel.tensor_parallel_size=2", "parallel.world_size=8"]
    plan = resolve_plan(load(write(), overrides))
    assert (plan.layout.data_parallel_size, plan.layout.replicas, plan.rows_per_rank) == (2, 4, 8)


MISTAKES = [
    # (overrides, what the message says)
    (
        [f"{SIZE}=2", "parallel.world_size=3"],
        "parallel.world_size 3 (command line) is not a multiple of parallel.tensor_parallel_size 1 (default) "
        f"times {SIZE} 2 (command line)",
    ),
    (
        [f"{SIZE}=3", "parallel.context_parallel_form=ulysses"],
        f"{SIZE} 3 (command line) does not divide model.num_attention_heads 4 (c.yaml:7), as "
        'parallel.context_parallel_form "ulysses" (command line) needs it',
    ),
    (
        [f"{SIZE}=4", "parallel.context_parallel_form=ulysses", "parallel.tensor_parallel_size=2"],
        "does not divide model.num_attention_heads 4 (c.yaml:7) over 2 tensor-parallel ranks",
    ),
    (
        [f"{SIZE}=3", "model.attention_dropout=0.1"],
        'parallel.context_parallel_form "auto" (default) (auto is ring here, as 3 does not divide',
    ),
    (
        [f"{SIZE}=2", "parallel.context_parallel_form=ring", "kernels.operators.attention=sdpa"],
        'kernels.operators.attention "sdpa" (command line) does not go with parallel.context_parallel_form',
    ),
    (
        [f"{SIZE}=3", "data.sequence_length=5"],
        f"data.sequence_length 5 (command line) is too short for {SIZE} 3 (command line)",
    ),
    (
        [
            f"{SIZE}=2", "parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true",
            "data.sequence_length=126",
        ],
        f"data.sequence_length 126 (command line): its pieces for {SIZE} 2 (command line) are not divisible",
    ),
    ([f"{SIZE}=2", "train.objective=dpo"], 'does not go with train.objective "dpo" (command line)'),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "what"), MISTAKES)
def test_what_ranks_cannot_share_is_named(
    overrides: list[str], what: str, base: str, refused: Refused
) -> None:
    assert what in refused(base, *overrides)


def test_pieces_that_gain_nothing_are_noted(write: Write) -> None:
    def notes(*overrides: str) -> str:
        return "\n".join(load(write(), overrides).remarks)

    assert f"{SIZE} 2 (command line) leaves each rank 64 of the tokens of a row" in notes(f"{SIZE}=2")
    assert SIZE not in notes(f"{SIZE}=2", "data.sequence_length=4096")
    assert SIZE not in notes()
    without = notes("parallel.context_parallel_form=ring")
    assert (
        f'parallel.context_parallel_form "ring" (command line) has no effect: {SIZE} 1 (default)' in without
    )
