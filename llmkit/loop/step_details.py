"""What a step's result has beside loss and gradient norm: parts of the loss, spikes, sizes of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from llmkit.config.schema import Config
from llmkit.engine.base import StepResult
from llmkit.engine.layer_outputs import ELEMENTS, LARGEST, SQUARES
from llmkit.engine.layer_sums import COLUMNS, COUNTS, GRADIENT, UPDATE, WEIGHT
from llmkit.engine.loss_parts import loss_at
from llmkit.kernels.magnitudes import EDGES
from llmkit.loop.routing_log import Failure, RoutingLog
from llmkit.loop.source_losses import SourceLosses
from llmkit.monitor.media import histogram
from llmkit.monitor.spikes import Spike, SpikeDetector


class Taken(NamedTuple):
    """What was taken of a step and is on its way to the host."""

    result: StepResult
    by_source: Tensor | None
    routing: Tensor | None

    @property
    def in_row(self) -> list[Tensor]:
        """What the columns of the step's row are made of."""
        return [each for each in (self.by_source, self.routing) if each is not None]

    @property
    def behind_row(self) -> list[Tensor]:
        """What makes rows and items of its own."""
        layers = self.result.layers
        found = [self.result.by_position]
        found += [layers.sums, layers.of_outputs] if layers is not None else []
        found += [self.result.routing if layers is not None else None, self.result.by_rank]
        return [each for each in found if each is not None]


class StepDetails:
    """Takes what a step gives on the device, and makes rows and items of it when it is read.

    length: of a row in tokens. write: takes a row. write_media: takes an item of media.jsonl and its step.
    on_spike: called with each spike. on_ranks: called with each step and `StepResult.by_rank`. routing: None
    for models without experts. on_routing: called with the step of a row and what fails in it.
    """

    def __init__(
        self,
        sources: SourceLosses,
        spikes: SpikeDetector,
        length: int,
        write: Callable[[dict[str, Any]], None],
        write_media: Callable[[Mapping[str, Any], int], None],
        on_spike: Callable[[Spike], None],
        on_ranks: Callable[[int, Sequence[float]], None] = lambda step, squares: None,
        routing: RoutingLog | None = None,
        on_routing: Callable[[int, Failure], None] = lambda step, failure: None,
    ) -> None:
        self._sources, self._spikes, self._length = sources, spikes, length
        self._write, self._write_media = write, write_media
        self._on_spike, self._on_ranks = on_spike, on_ranks
        self._routing, self._on_routing = routing, on_routing

    def take(self, result: StepResult, row_due: bool) -> Taken:
        """Takes a step; the sums since the last row belong to it where a row is due."""
        if result.by_source is not None:
            self._sources.add(result.by_source)
        if self._routing is not None and result.routing is not None:
            self._routing.add(result.routing)
        by_source = self._sources.take() if row_due else None
        return Taken(result, by_source, self._routing.take() if self._routing and row_due else None)

    def columns(self, step: int, taken: Taken, values: Iterator[float]) -> dict[str, float]:
        """Columns for the row of the step. values: those of `Taken.in_row` come next."""
        columns: dict[str, float] = {}
        if taken.by_source is not None:
            columns |= self._sources.columns(_next(values, taken.by_source))
        if taken.routing is not None and self._routing is not None:
            sums = self._routing.rows(_next(values, taken.routing))
            columns |= self._routing.columns(sums)
            for failure in self._routing.failures(sums):
                self._on_routing(step, failure)
        return columns

    def after_row(
        self, step: int, taken: Taken, values: Iterator[float],
        loss: float | None, norm: float | None,
    ) -> None:  # fmt: skip
        """Records what has a row, or a line, of its own. values: of `Taken.behind_row`."""
        row: dict[str, Any] = {}
        if (by_position := taken.result.by_position) is not None:
            row |= loss_at(_next(values, by_position), self._length)
        if (layers := taken.result.layers) is not None:
            sums = [[next(values) for _ in range(COLUMNS)] for _ in layers.layers]
            row |= layer_columns(layers.layers, sums)
            outputs = [[next(values) for _ in range(LARGEST + 1)] for _ in layers.outputs]
            row |= output_columns(layers.outputs, outputs)
            for layer, numbers in zip(layers.layers, sums, strict=True):
                if not math.isnan(numbers[COUNTS]):
                    self._write_media(histogram(f"gradients/{layer}", EDGES, numbers[COUNTS:]), step)
            row |= self._routed(step, taken, values)
        if row:
            self._write({"step": step} | row)
        if (by_rank := taken.result.by_rank) is not None:
            self._on_ranks(step, _next(values, by_rank))
        if loss is not None and norm is not None:
            spike = self._spikes.add(step, loss, norm)
            if spike is not None:
                self._on_spike(spike)

    def _routed(self, step: int, taken: Taken, values: Iterator[float]) -> dict[str, float]:
        """Columns by layer of where the step sent tokens, whose loads become a table."""
        if taken.result.routing is None:
            return {}
        numbers = _next(values, taken.result.routing)
        if self._routing is None:
            return {}
        sums = self._routing.rows(numbers)
        if (loads := self._routing.loads(sums)) is not None:
            self._write_media(loads, step)
        return self._routing.layer_columns(sums)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON; the same on all ranks. Waits for the device."""
        found = {"sources": self._sources.state(), "spikes": self._spikes.state()}
        return found | ({} if self._routing is None else {"routing": self._routing.state()})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after `state`; checkpoints until 2026-11-28 have none."""
        self._sources.load_state(state.get("sources", {}))
        self._spikes.load_state(state.get("spikes", {}))
        if self._routing is not None:
            self._routing.load_state(state.get("routing", {}))


def _next(values: Iterator[float], tensor: Tensor) -> list[float]:
    """As many of the values as the tensor has elements."""
    return list(islice(values, tensor.numel()))


def spike_detector(config: Config) -> SpikeDetector:
    """As the settings say: steps of the warm-up of the learning rate are passed over."""
    monitor, schedule = config.monitor, config.schedule
    return SpikeDetector(monitor.spike_window, monitor.spike_threshold, schedule.warmup_steps)


def layer_columns(layers: Sequence[str], sums: Sequence[Sequence[float]]) -> dict[str, float]:
    """Norms of gradients and weights of each layer, and the ratio of update and weight, of all together, too.

    sums: of each layer, see `LayerSums`.
    """
    columns = {}
    for layer, numbers in zip(layers, sums, strict=True):
        columns[f"grad_norm/{layer}"] = math.sqrt(numbers[GRADIENT])
        columns[f"weight_norm/{layer}"] = math.sqrt(numbers[WEIGHT])
        columns[f"update_ratio/{layer}"] = _ratio(numbers[UPDATE], numbers[WEIGHT])
    updates, weights = (math.fsum(numbers[column] for numbers in sums) for column in (UPDATE, WEIGHT))
    return {"update_ratio": _ratio(updates, weights)} | columns


def _ratio(update: float, weight: float) -> float:
    return math.sqrt(update / weight) if weight else math.nan  # of weights that are all 0 there is none


def output_columns(names: Sequence[str], sums: Sequence[Sequence[float]]) -> dict[str, float]:
    """Root mean square and largest magnitude of what each layer gave; sums: see `LayerOutputs`."""
    columns = {}
    for name, numbers in zip(names, sums, strict=True):
        if numbers[ELEMENTS]:
            columns[f"activation_rms/{name}"] = math.sqrt(numbers[SQUARES] / numbers[ELEMENTS])
            columns[f"activation_max/{name}"] = numbers[LARGEST]
    return columns
