"""Full matrices out of elements on several ranks, and the results back to where they belong."""

from __future__ import annotations

import pytest
import torch

from llmkit.optim.exchange import MatrixExchange, MatrixShard, deal, shards_of
from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import ParameterSlice
from tests.optim.exchange_cases import SHAPES
from tests.ranks import run_ranks

FORMS = ["flat", "tensor", "replicated", "one"]


def test_shards_of_a_slice_of_stacked_parts():
    parts = [
        ParameterSlice("q", (4, 6), ((0, 2), (0, 6)), 0, 2),
        ParameterSlice("k", (2, 6), ((1, 2), (0, 6)), 2, 3),
    ]
    assert list(shards_of(parts, 5, 15, offset=100)) == [
        MatrixShard("q", (4, 6), ((0, 2), (0, 6)), (5, 12), 100),
        MatrixShard("k", (2, 6), ((1, 2), (0, 6)), (0, 3), 107),
    ]


def test_the_most_expensive_matrices_are_dealt_out_first():
    assert deal([(2, 2), (40, 40), (40, 30), (30, 40), (2, 2)], 3) == [1, 0, 1, 2, 2]
    assert deal([(8, 8)] * 8, 4) == [0, 1, 2, 3] * 2
    assert deal([(8, 8)], 1) == [0]


def test_one_rank_needs_no_group():
    shapes = {"a": (3, 2)}
    part = ParameterSlice("a", (3, 2), ((0, 3), (0, 2)), 0, 3)
    exchange = MatrixExchange(
        list(shards_of([part], 0, 6)), shapes, Axis(), device=torch.device("cpu"), dtype=torch.float32
    )
    (found,) = exchange.apply([torch.arange(6.0)], lambda owned: [owned[0].T.reshape(3, 2)])
    assert found.tolist() == [0, 2, 4, 1, 3, 5]


@pytest.fixture(scope="module")
def found() -> list[dict[str, list]]:
    return run_ranks(3, "tests.optim.exchange_cases:exchanged", forms=FORMS)


@pytest.mark.parametrize("form", FORMS)
def test_each_rank_gets_back_its_elements(found, form):
    assert max(each[form][0] for each in found) < 1e-5
    assert all(each[form][2] > 0 for each in found), "a rank without work"


def test_what_several_ranks_hold_is_sent_once(found):
    elements = sum(rows * columns for rows, columns in SHAPES.values())
    for form in FORMS:
        assert sum(each[form][1] for each in found) == elements


def test_a_matrix_that_nobody_holds_wholly_is_an_error_on_all_ranks():
    errors = run_ranks(3, "tests.optim.exchange_cases:incomplete")
    assert len(set(errors)) == 1 and errors[0].startswith("b: the ranks hold 48 elements of 72")
