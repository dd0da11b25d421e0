"""The weights of the sources over the steps, and whether the sources last until the end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmkit.config import schema
from llmkit.data.mixing import quotas
from llmkit.data.order import Order, rows_before
from llmkit.data.prepared import TrainSource
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

    def continue_order(self, order: Order, steps_done: int, begin: Callable[[int], int]) -> None:
        """Gives `order` the weights from the step `steps_done` + 1 on. begin: where a step begins."""
        if order.segments[-1].weights != self.at(steps_done + 1):
            order.reweight(begin(steps_done + 1), self.at(steps_done + 1))
        for step, weights in zip(self.steps, self.weights, strict=True):
            if step > steps_done + 1:
                order.reweight(begin(step), weights)


@dataclass(frozen=True)
class Supply:
    """A source with a limit. index: of the source. rows: that may be read of it, in so many epochs."""

    name: str
    index: int
    rows: int
    max_epochs: int


@dataclass(frozen=True)
class Shortage:
    """A source that has fewer rows than some steps need. last_step: the last one that it has rows for."""

    supply: Supply
    needed: int
    last_step: int


def supplies(train: Sequence[TrainSource], order: Order) -> list[Supply]:
    """What stored sources with `max_epochs` have."""
    found = []
    for index, (source, size) in enumerate(zip(train, order.sizes, strict=True)):
        if source.max_epochs is not None and size is not None:
            rows = rows_before(source.max_epochs, size, order.length)
            found.append(Supply(source.name, index, int(rows), source.max_epochs))
    return found


def shortages(
    order: Order, supplies: Sequence[Supply], steps: range, begin: Callable[[int], int]
) -> list[Shortage]:
    """The sources that run dry in `steps`. begin: where a step begins."""
    short = []
    for supply in supplies:
        needed = int(order.consumed(begin(steps.stop))[supply.index])
        if needed <= supply.rows:
            continue
        lasts, too_many = 0, len(steps)  # the most steps that it has rows for lie between these
        while too_many - lasts > 1:
            middle = (lasts + too_many) // 2
            if order.consumed(begin(steps.start + middle))[supply.index] > supply.rows:
                too_many = middle
            else:
                lasts = middle
        short.append(Shortage(supply, needed, steps.start + lasts - 1))
    return short


def check_supply(
    order: Order, supplies: Sequence[Supply], steps: range, begin: Callable[[int], int]
) -> None:
    """Raises UserError if a source runs dry in `steps`; the message says until which step each one lasts."""
    short = [
        f"data.sources.{each.supply.index}.max_epochs: until step {steps.stop - 1} the run needs "
        f"{each.needed:,} rows of source {each.supply.name}, {each.supply.max_epochs} epochs have "
        f"{each.supply.rows:,}; it lasts until step {each.last_step}. Lower its weight, raise max_epochs or "
        "end there"
        for each in shortages(order, supplies, steps, begin)
    ]
    if short:
        raise UserError("\n".join(short))
