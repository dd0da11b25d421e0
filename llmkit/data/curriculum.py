"""The weights of the sources over the steps, and whether the sources last until the end.

    >>> weights = {"web": 1.0, "math": 0.0}
    >>> sources = [schema.Source(type="stdlib", name=name, weight=each) for name, each in weights.items()]
    >>> stages = [schema.Stage(step=1000, weights={"math": 3.0})]
    >>> curriculum = Curriculum.of(schema.Data(sources=sources, curriculum=stages), ["web", "math"])
    >>> curriculum.at(step=999), curriculum.at(step=1000)
    ((1.0, 0.0), (1.0, 3.0))
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmkit.config import schema
from llmkit.data.mixing import quotas
from llmkit.data.sampler import MixtureSampler, rows_before
from llmkit.data.source import Source
from llmkit.errors import UserError


@dataclass(frozen=True)
class Curriculum:
    """steps: the first step of each stage, counted from 1, ascending. weights: those of all sources there."""

    steps: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, config: schema.Data, names: Sequence[str]) -> Curriculum:
        """What the settings say, for sources of these names; a source keeps the weight it was given last."""
        stages = {1: {name: source.weight for name, source in zip(names, config.sources, strict=True)}}
        weights = stages[1]
        for stage in sorted(config.curriculum, key=lambda stage: stage.step):
            weights = weights | stage.weights
            stages[stage.step] = weights
        return cls(tuple(stages), tuple(tuple(each[name] for name in names) for each in stages.values()))

    def check_weights(self) -> None:
        """Raises UserError where a weight is so small that no row would be drawn with it."""
        for step, weights in zip(self.steps, self.weights, strict=True):
            try:
                quotas(weights)
            except UserError as error:
                raise UserError(
                    f"data.curriculum, from step {step}: {error}" if step > 1 else str(error)
                ) from error

    def at(self, step: int) -> tuple[float, ...]:
        """The weights that hold for a step, counted from 1."""
        return self.weights[bisect_right(self.steps, step) - 1]

    def apply_to(self, sampler: MixtureSampler, steps_done: int, begin: Callable[[int], int]) -> None:
        """Gives the sampler the weights from the step `steps_done` + 1 on. begin: where a step begins."""
        if sampler.segments[-1].weights != self.at(steps_done + 1):
            sampler.reweight(begin(steps_done + 1), self.at(steps_done + 1))
        for step, weights in zip(self.steps, self.weights, strict=True):
            if step > steps_done + 1:
                sampler.reweight(begin(step), weights)


@dataclass(frozen=True)
class Shortage:
    """A source with fewer rows than some steps need. rows: that it has in the epochs that it may be read.
    last_step: the last one that it has rows for."""

    source: Source
    rows: int
    needed: int
    last_step: int


def shortages(
    sampler: MixtureSampler, sources: Sequence[Source], steps: range, begin: Callable[[int], int]
) -> Iterator[Shortage]:
    """The stored sources with `max_epochs` that run dry in `steps`. begin: where a step begins.

    Of live sources nobody knows the size: those run dry in mid-run.
    """
    for source, size in zip(sources, sampler.sizes, strict=True):
        if source.max_epochs is None or size is None:
            continue
        rows = int(rows_before(source.max_epochs, size, sampler.length))

        def needed(count: int, index: int = source.index) -> int:
            return int(sampler.consumed(begin(steps.start + count))[index])

        if needed(len(steps)) > rows:
            lasts = bisect_right(range(1, len(steps)), rows, key=needed)
            yield Shortage(source, rows, needed(len(steps)), steps.start + lasts - 1)


def check_epochs(
    sampler: MixtureSampler, sources: Sequence[Source], steps: range, begin: Callable[[int], int]
) -> None:
    """Raises UserError if a source runs dry in `steps`; the message says until which step each one lasts."""
    short = [
        f"{each.source.setting}.max_epochs: until step {steps.stop - 1} the run needs {each.needed:,} rows "
        f"of source {each.source.name}, {each.source.max_epochs} epochs have {each.rows:,}; it lasts until "
        f"step {each.last_step}. Lower its weight, raise max_epochs or end there"
        for each in shortages(sampler, sources, steps, begin)
    ]
    if short:
        raise UserError("\n".join(short))
