"""Ways in which layouts cut a tensor, for hypothesis."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from llmkit.parallel.slices import Box, box_size


@st.composite
def cuttings(draw: st.DrawFn, shape: tuple[int, ...]) -> list[tuple[Box, tuple[int, int]]]:
    """One layout: a tensor cut along one dimension (tensor parallelism), each box cut flat (ZeRO)."""
    dimension = draw(st.integers(0, len(shape) - 1))
    size = shape[dimension]
    cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=3))})
    found = []
    for side in pairwise(cuts):
        box = tuple(side if d == dimension else (0, n) for d, n in enumerate(shape))
        flat = sorted({0, box_size(box), *draw(st.lists(st.integers(0, box_size(box)), max_size=4))})
        found += [(box, part) for part in pairwise(flat)]
    return draw(st.permutations(found))
