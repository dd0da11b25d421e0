"""What a rank knows of those with which it shares its rows."""

from __future__ import annotations

from dataclasses import replace

from llmkit.parallel.context import WHOLE_ROWS, ContextParallel, context_parallel, split_mesh
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh


def test_a_rank_has_the_piece_of_its_index():
    second = ContextParallel(rank=1, size=3, form="ring")
    assert second.own(14) == second.pieces(14)[1] == ((3, 6), (10, 12))
    assert second.sizes(14) == [5, 5, 4]
    assert replace(second, form="ulysses").own(14) == ((5, 10),)


def test_alone_it_has_all_of_the_row():
    assert WHOLE_ROWS.own(14) is None
    assert context_parallel(Mesh(), "ring") is WHOLE_ROWS
    assert split_mesh(Mesh(), Layout()) == Mesh()
