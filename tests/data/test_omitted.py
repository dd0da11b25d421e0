from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.config import schema
from llmkit.data.loader import TrainLoader
from llmkit.data.omitted import Omitted
from llmkit.data.state import read_data_state
from llmkit.errors import UserError
from tests.data.test_loader import SEED, mixtures, real_rows
from tests.data.toy import ToyRows, toy

Batches = list[dict[int, Any]]
"""Of each step: position -> row."""


@given(windows=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5))
def test_numbers_count_the_rows_that_are_not_left_out(windows: list[tuple[int, int]]) -> None:
    windows = [(min(window), max(window)) for window in windows]
    omitted = Omitted(windows)
    left = [p for p in range(200) if not any(start <= p < stop for start, stop in windows)]
    assert omitted.positions(np.arange(100)).tolist() == left[:100]
    assert [omitted.number(p) for p in range(100)] == [sum(q < p for q in left) for p in range(100)]
    assert all(omitted.after(p, 3) == [q for q in left if q >= p][3] for p in range(60))
    assert all(b[0] > a[1] for a, b in zip(omitted.windows, omitted.windows[1:], strict=False))


@given(start=st.integers(0, 40), length=st.integers(1, 20), unit=st.integers(1, 9))
def test_a_window_is_made_longer_to_a_multiple_of_its_unit(start: int, length: int, unit: int) -> None:
    before = Omitted([(0, 2 * unit), (30, 30 + unit)])
    after, window = before.with_window((start, start + length), unit)
    assert window in after.windows and window[0] <= start and start + length <= window[1]
    assert all((stop - begin) % unit == 0 for begin, stop in after.windows)


class Loaders:
    """The loaders of all ranks of a start."""

    def __init__(self, data: tuple[Any, schema.Data], batch_rows: int, micro: int, world: int) -> None:
        self.each = [TrainLoader(*data, SEED, batch_rows, micro, rank, world) for rank in range(world)]

    def __enter__(self) -> Loaders:
        return self

    def __exit__(self, *error: object) -> None:
        for loader in self.each:
            loader.close()

    def steps(self, count: int) -> Batches:
        found: Batches = []
        for _ in range(count):
            rows: dict[int, Any] = {}
            for step in [next(loader) for loader in self.each]:
                real = step.positions[step.sources.ravel() >= 0].tolist()
                rows |= dict(zip(real, real_rows(step), strict=True))
            found.append(dict(sorted(rows.items())))
        return found

    def state_dict(self) -> Any:
        known: list[str] = []
        for loader in self.each:
            loader.state_dict(lambda text: known.append(text) or [text])  # type: ignore[func-returns-value]
        (state,) = {json.dumps(loader.state_dict(lambda text: known)) for loader in self.each}
        return json.loads(state)


sizes = st.tuples(st.integers(1, 7), st.integers(1, 3))
worlds = st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3)), min_size=2, max_size=4)


@given(data=mixtures(), sizes=sizes, back=st.integers(0, 3), skip=st.tuples(*[st.integers(1, 3)] * 2),
       worlds=worlds)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_what_is_trained_on_without_a_window_depends_on_no_ranks_and_no_resumes(
    data: Any, sizes: tuple[int, int], back: int, skip: tuple[int, int], worlds: list[tuple[int, int]]
) -> None:
    """As a rollback does it: `back` steps are kept, those after them are done again without some rows."""
    count = sum(steps for _, steps in worlds)
    with Loaders(data, *sizes, world=1) as alone:
        alone.steps(back)
        state = alone.state_dict()
        ahead = alone.steps(skip[0] + skip[1] + count + 60)  # as a window of a live source is long
        window = min(ahead[skip[0] - 1]), max(ahead[skip[0] + skip[1] - 1]) + 1
        (loader,) = alone.each
        loader.rewind(state, back)
        start, stop = loader.omit(window)
        straight = alone.steps(count)
    before = {g: row for step in ahead for g, row in step.items()}
    known = {g: row for step in straight for g, row in step.items()}
    assert start == window[0] and stop >= window[1]
    assert not any(start <= g < stop for g in known)
    if data[1].curriculum:  # a stage begins with its step, so behind the window at another row
        assert all(row == before[g] for g, row in known.items() if g < stop)
    else:
        assert known == {g: row for g, row in before.items() if not start <= g < stop and g <= max(known)}

    found: Batches = []
    for number, (world, steps) in enumerate(worlds):
        with Loaders(data, *sizes, world) as loaders:
            for loader in loaders.each:
                loader.load_state_dict(state, back)
                if number == 0:
                    assert loader.omit(window) == (start, stop)
            found += loaders.steps(steps)
            state, back = loaders.state_dict(), back + steps
    assert found == straight


def test_a_stage_that_begins_in_a_window_begins_at_its_step_behind_it() -> None:
    """The rows of the window are the same ones, however the rest is drawn."""
    stages = [schema.Stage(step=5, weights={"b": 3.0})]
    data = toy({"a": ToyRows(4000), "b": ToyRows(4000, 9000)}, {"a": 1.0}, curriculum=stages)
    with Loaders(data, 8, 4, world=1) as alone:
        (loader,) = alone.each
        state = alone.state_dict()
        straight = alone.steps(12)
        loader.rewind(state, 0)
        loader.omit((3 * 8, 6 * 8))  # steps 4 to 6
        again = alone.steps(6)
        saved = alone.state_dict()
    assert again[:3] == straight[:3]
    used = [row for step in again for row in step.values()]
    left_out = [row for step in straight[3:6] for row in step.values()]
    assert not [row for row in used if row in left_out], "no row of the window comes later"
    shares = [sum(row[0] for row in step.values()) for step in again]
    assert shares[3] == 4 and shares[4] >= 5, "step 4 has the weights of before, step 5 the new ones"
    with Loaders(data, 8, 4, world=2) as loaders:
        for each in loaders.each:
            each.load_state_dict(saved, 6)
        assert loaders.state_dict() == saved


def test_a_position_with_weights_of_rows_that_are_not_fixed_is_refused() -> None:
    with Loaders(toy({"a": ToyRows(400)}, {}), 8, 4, world=1) as alone:
        state = alone.state_dict()
    state["segments"].append([16, [1.0]])
    with pytest.raises(UserError, match="segments start at"):
        read_data_state(state)
    assert read_data_state(state | {"omitted": [[8, 16]]}).without_plans().omitted == []
