from __future__ import annotations

import pytest

from llmkit.config import schema
from llmkit.data.curriculum import Curriculum, check_epochs
from llmkit.data.sampler import MixtureSampler
from llmkit.data.source import Source
from llmkit.errors import UserError


def settings(weights: dict[str, float], *stages: tuple[int, dict[str, float]]) -> schema.Data:
    return schema.Data(
        sources=[schema.Source(type="stdlib", name=name, weight=weight) for name, weight in weights.items()],
        curriculum=[schema.Stage(step=step, weights=changed) for step, changed in stages],
    )


def test_a_source_keeps_the_weight_it_was_given_last() -> None:
    config = settings({"a": 1.0, "b": 2.0}, (30, {"b": 5.0}), (10, {"a": 4.0}))
    curriculum = Curriculum.of(config, ["a", "b"])
    assert [curriculum.at(step) for step in (1, 9, 10, 29, 30, 1000)] == [
        (1.0, 2.0), (1.0, 2.0), (4.0, 2.0), (4.0, 2.0), (4.0, 5.0), (4.0, 5.0),
    ]  # fmt: skip


def test_a_stage_may_begin_with_the_run() -> None:
    curriculum = Curriculum.of(settings({"a": 0.0}, (1, {"a": 2.0})), ["a"])
    assert (curriculum.steps, curriculum.at(1)) == ((1,), (2.0,))


def test_stages_that_lie_ahead_get_their_positions_from_the_batch_size_of_now() -> None:
    curriculum = Curriculum.of(settings({"a": 1.0, "b": 1.0}, (3, {"a": 3.0}), (9, {"a": 0.0})), ["a", "b"])
    sampler = MixtureSampler(0, [100, 100], curriculum.at(1))
    curriculum.apply_to(sampler, 5, lambda step: 70 + (step - 6) * 10)
    assert [(segment.start, segment.weights) for segment in sampler.segments] == [
        (0, (1.0, 1.0)), (70, (3.0, 1.0)), (70 + 3 * 10, (0.0, 1.0)),
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_supply_that_is_too_short_is_told_with_the_last_step_that_it_feeds(limit: int) -> None:
    def begin(step: int) -> int:
        return (step - 1) * 10

    sampler = MixtureSampler(3, [40, 1000], [1.0, 1.0])
    specs = [schema.Source(type="stdlib", name="a", max_epochs=limit), schema.Source(type="stdlib", name="b")]
    sources = [Source(index, spec) for index, spec in enumerate(specs)]
    consumed = [int(sampler.consumed(10 * step)[0]) for step in range(60)]
    last = max(step for step in range(60) if consumed[step] <= 40 * limit)
    check_epochs(sampler, sources, range(1, last + 1), begin)
    told = f"until step 59 the run needs {consumed[59]} rows .* lasts until step {last}"
    with pytest.raises(UserError, match=told):
        check_epochs(sampler, sources, range(1, 60), begin)
    with pytest.raises(UserError, match=f"lasts until step {last}"):  # asked in mid-run
        check_epochs(sampler, sources, range(4, 60), begin)


def test_a_weight_that_is_too_small_is_named_with_its_stage() -> None:
    curriculum = Curriculum.of(settings({"a": 1.0, "b": 1.0}, (30, {"b": 1e-9})), ["a", "b"])
    with pytest.raises(
        UserError, match=r"^data.curriculum, from step 30: the weight of data.sources.1, 1e-09"
    ):
        curriculum.check_weights()
    with pytest.raises(UserError, match=r"^the weight of data.sources.0, 1e-300, is 0 of all weights"):
        Curriculum.of(settings({"a": 1e-300, "b": 1e308}), ["a", "b"]).check_weights()
