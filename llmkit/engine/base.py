"""What every engine offers to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llmkit.batch import Batch, LossSum
from llmkit.checkpoint.pieces import Piece
from llmkit.engine.fingerprint import Fingerprint
from llmkit.engine.layer_statistics import LayerStatistics
from llmkit.engine.loss_parts import sums_by_position, sums_by_source
from llmkit.engine.parts import StepParts
from llmkit.engine.state_shards import Source
from llmkit.errors import UserError
from llmkit.model.base import Model
from llmkit.model.vocabulary import Head
from llmkit.optim.schedule import AS_CONFIGURED, StepValues
from llmkit.parallel.agreement import check_same_on_all_ranks
from llmkit.parallel.mesh import Mesh

Objective = Callable[[LossSum, Batch], LossSum]
"""Makes what is minimised of the loss that the model gives for a batch, still as sums of rows."""


def next_token(loss: LossSum, batch: Batch) -> LossSum:
    """The objective of pretraining: the loss as it is."""
    return loss


Observer = Callable[[Batch, LossSum], None]
"""Looks at a batch and its loss."""


def ignore(batch: Batch, loss: LossSum) -> None:
    """The observer that does nothing."""


class StepResult(NamedTuple):
    """Outcome of one optimizer step over the global batch, the same on all ranks.

    Scalars are still on the device.

    loss_sum: nats summed over all targets, fp64.
    targets: how many targets there were (known on the host).
    grad_norm: global L2 norm before clipping, fp32.
    skipped: 1.0 where a non-finite gradient made the update void, else 0.0; fp32.
    extras: the model's further sums (`LossSum.extras`) over the global batch, fp64.
    parts: seconds of communication and optimizer; None where the engine cannot tell, or nothing was computed.
    by_source: nats and targets of each data source, (sources, 2) fp64; None: see `Batch.sources`.
    by_position: the same of each of `position_ranges`; None: not asked for, or not known.
    layers: sizes of gradients, weights, updates and activations; None: not asked for.
    routing: the sums of `LossSum.routing` over the global batch, fp64; None: there are no experts.
    by_rank: squared L2 norm of the gradient that each rank has computed, of which `grad_norm` is that of the
        sum, (ranks,) fp64, without experts that are dealt out; at stage 2 of our own engine, and under
        DeepSpeed, the sum of those of its micro-batches; None: there is one rank, or nothing was computed.
    """

    loss_sum: Tensor
    targets: int
    grad_norm: Tensor
    skipped: Tensor
    extras: Mapping[str, Tensor] = MappingProxyType({})
    parts: StepParts | None = None
    by_source: Tensor | None = None
    by_position: Tensor | None = None
    layers: LayerStatistics | None = None
    by_rank: Tensor | None = None
    routing: Tensor | None = None


def without_targets(device: torch.device) -> StepResult:
    """Outcome of a step whose global batch has no target: nothing was computed, nothing has changed."""
    zero = torch.zeros((), device=device)
    return StepResult(zero.double(), 0, zero, zero)


class SumsOfStep(NamedTuple):
    """Sums over the global batch, as in `StepResult`."""

    loss: Tensor
    extras: dict[str, Tensor]
    by_source: Tensor | None
    by_position: Tensor | None
    routing: Tensor | None
    by_rank: Tensor | None

    def result(self, targets: int, grad_norm: Tensor, skipped: Tensor) -> StepResult:
        """The outcome of the step, but for what only engines know."""
        return StepResult(
            self.loss, targets, grad_norm, skipped, self.extras,
            by_source=self.by_source, by_position=self.by_position, by_rank=self.by_rank,
            routing=self.routing,
        )  # fmt: skip


class StepSums:
    """The sums of a step over its micro-batches: of the loss, its parts and the model's extras, fp64.

    One object serves all steps: it knows the names of the extras, which must not change.
    """

    names: tuple[str, ...] | None = None

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def start(self, device: torch.device, by_position: bool = False) -> None:
        """Before the first micro-batch of a step. by_position: whether these sums are wanted."""
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.extras: dict[str, Tensor] = {}
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.wants_positions = by_position
        self.by_position: Tensor | None = None
        self.routing: Tensor | None = None

    def add(self, loss: LossSum, batch: Batch) -> None:
        """Adds a micro-batch."""
        self.loss += loss.nats.detach().sum()
        if batch.sources is not None:
            self.rows.append((loss.nats.detach(), loss.targets, batch.sources))
        if self.wants_positions and loss.by_token is not None:
            found = sums_by_position(loss.by_token, batch)
            self.by_position = found if self.by_position is None else self.by_position + found
        if loss.routing is not None:
            routing = loss.routing.double()
            self.routing = routing if self.routing is None else self.routing + routing
        for name, extra in loss.extras.items():
            value = extra.detach().double()
            self.extras[name] = self.extras[name] + value if name in self.extras else value

    def over_ranks(self, by_rank: Tensor | None = None) -> SumsOfStep:
        """The sums over all ranks that see other tokens, in one exchange; nothing waits for the device.

        by_rank: as of `OwnGradients.by_rank`; summed over all ranks.
        Collective. Raises UserError where the names of the extras differ between ranks, or change.
        """
        names = tuple(sorted(self.extras))  # the order in which ranks have met them may differ
        if self.names is None:
            facts = {"names of LossSum.extras, the same for every batch": ", ".join(names)}
            check_same_on_all_ranks(self.mesh, facts)
            self.names = names
        if names != self.names:  # ranks would exchange different numbers of sums
            raise UserError(
                f"LossSum.extras of the model had the names ({', '.join(self.names)}), in this step they are "
                f"({', '.join(names)}): give the same for every batch, 0 where there is nothing to add"
            )
        by_source = sums_by_source(self.rows) if self.rows else None
        parts = [by_source, self.by_position, self.routing, by_rank]
        numbers = torch.stack([self.loss, *(self.extras[name] for name in names)])
        flat = [numbers, *(part.flatten() for part in parts if part is not None)]
        self.mesh["data", "context"].sum(total := torch.cat(flat))
        numbers, total = total[: len(numbers)], total[len(numbers) :]
        for index, part in enumerate(parts):
            if part is not None:
                parts[index], total = total[: part.numel()].view_as(part), total[part.numel() :]
        if parts[-1] is not None:
            self.mesh["tensor"].sum(parts[-1])
        return SumsOfStep(numbers[0], dict(zip(names, numbers[1:].unbind(), strict=True)), *parts)


class Copies(NamedTuple):
    """A tensor of which all ranks along some mesh dimensions hold the same."""

    name: str
    dims: tuple[str, ...]
    tensor: Tensor


class Engine(Protocol):
    """Owns parameters, gradients and optimizer state. All ranks call its methods together.

    model: with the current weights; complete, and so fit for sampling, unless ZeRO-3 or tensor parallelism
        shards it.
    """

    model: Model

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        targets: int,
        values: StepValues = AS_CONFIGURED,
        measure: bool = False,
    ) -> StepResult:
        """One update: the gradient is that of the summed loss divided by `targets`, the global count.

        Without a target anywhere there is no gradient, and no update: weights, moments and their count stay.
        micro_batches: of this data-parallel rank; as many, and of the same shape, on every rank. values: what
        the step multiplies the optimizers' settings by. measure: whether the result has what takes time to
        find, too.
        """
        ...

    def evaluate(self, batches: Iterable[Batch], observe: Observer = ignore) -> LossSum:
        """Loss of each row without updating anything; rows of all batches behind each other, extras summed.

        The rows are those of this data-parallel rank: sums over all are the caller's. observe: called with
        each batch and its loss.
        """
        ...

    def score(self, batches: Iterable[Batch]) -> LossSum:
        """As `evaluate`, with `LossSum.likeliest`, and for batches of any shape: nothing is compiled.

        Data-parallel ranks give as many batches each. Raises UserError for a model that does not count.
        """
        ...

    def fingerprint(self, batch: Batch) -> Fingerprint:
        """What a forward and backward pass of a micro-batch gives; weights and gradients stay as they are.

        Not before the first step.
        """
        ...

    def copies(self) -> Iterator[Copies]:
        """What several ranks hold the same of, which should be equal bit for bit; the same on all ranks."""
        ...

    def read_pieces(self) -> Iterator[Piece]:
        """Masters, moments and the moving average, as checkpoint pieces; with `optimizer_steps` they are the
        complete state.

        Each rank yields a share, and no two ranks the same: together they are the checkpoint.
        """
        ...

    def write_pieces(self, source: Source, optimizer_steps: int) -> None:
        """Takes masters, moments and the moving average from a checkpoint of any layout; each rank reads what
        it needs.

        Where the source has no moments they start at zero; where it has no average, that starts at the
        weights. Between two steps.
        """
        ...

    def exchange_ema(self) -> None:
        """Exchanges the weights with their moving average, which there must be; a second call undoes that.

        Between two steps, with nothing but evaluations between the two calls. Collective.
        """
        ...

    @property
    def optimizer_steps(self) -> int:
        """Updates applied so far (steps less skipped ones): AdamW's bias correction counts these."""
        ...

    def files(self) -> Mapping[str, Any]:
        """What the run folder keeps of how the engine was set up: name of a JSON file -> its content."""
        ...

    def end_fetching(self) -> None:
        """Ends the fetching of parameters ahead of their use, so that others may gather them. Collective."""
        ...

    def close(self) -> None:
        """Gives up devices and process groups."""
        ...


def evaluate_rows(
    model: Model,
    forward: Callable[[Batch], LossSum],
    batches: Iterable[Batch],
    observe: Observer = ignore,
) -> LossSum:
    """Loss of each row of the batches, dropout off; `forward` is how the engine calls `model`."""
    training = model.training
    if model.has_dropout:
        model.eval()
    for head in heads(model):  # others stay in the mode in which they were compiled
        head.eval()
    model.evaluating = True
    found, extras = [], dict[str, Tensor]()
    try:
        for batch in batches:
            rows = forward(batch)
            observe(batch, rows)
            found.append(LossSum(rows.nats.detach(), rows.targets, likeliest=rows.likeliest))
            for name, extra in rows.extras.items():
                value = extra.detach().double()
                extras[name] = extras[name] + value if name in extras else value
            del rows  # and with it what a backward pass would need, before the next batch is computed
    finally:  # the iterator of the batches may raise
        model.train(training)
        model.evaluating = False
    likeliest = [rows.likeliest for rows in found if rows.likeliest is not None]
    return LossSum(
        torch.cat([rows.nats for rows in found]),
        torch.cat([rows.targets for rows in found]),
        extras,
        likeliest=torch.cat(likeliest) if likeliest else None,
    )


def score_rows(model: Model, forward: Callable[[Batch], LossSum], batches: Iterable[Batch]) -> LossSum:
    """See `Engine.score`; `forward` is how the engine calls `model`."""
    for head in heads(model):
        head.counts_likeliest = True
    try:
        eager = torch.compiler.set_stance("force_eager") if model.compiled else nullcontext()
        with torch.no_grad(), eager:
            rows = evaluate_rows(model, forward, batches)
    finally:
        for head in heads(model):
            head.counts_likeliest = False
    if rows.likeliest is None:
        raise UserError(
            f"{type(model).__name__} does not say which targets it finds likeliest; give LossSum.likeliest "
            "in its forward(batch), or compute the loss by llmkit.layers.Head or LossSum.of_logits"
        )
    return rows


def heads(model: Model) -> list[Head]:
    """The output heads of a model."""
    return [module for module in model.modules() if isinstance(module, Head)]
