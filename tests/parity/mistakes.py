"""Mistakes that are easily made in distributed training, made on purpose; see test_mistakes.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import llmkit.parity.run
from llmkit.batch import IGNORE, Batch, Ranges, RowPiece
from llmkit.config.context import Form, row_pieces
from llmkit.engine.deepspeed import mark_sharded
from llmkit.engine.gradient_slices import GradientSlices
from llmkit.engine.masters import SeveralMasters
from llmkit.engine.native import NativeEngine
from llmkit.engine.zero import ZeroEngine
from llmkit.kernels.expert_exchange import ExpertExchange
from llmkit.kernels.experts import Dispatch
from llmkit.model import attention, layers, moe, norm
from llmkit.model.positions import Span
from llmkit.model.vocabulary import Embedding
from llmkit.parallel.collectives import all_gather
from llmkit.parallel.placement import REPLICATED, Placement
from llmkit.parity.cases import Case
from llmkit.parity.subjects import count_targets
from llmkit.parity.suite import run_cases
from tests.parity.launched import mesh_maker

Mistake = Callable[[], Any]


@contextmanager
def placements_missing() -> Iterator[None]:
    """While a step is taken, no parameter is known to be sharded: each rank takes its part for all of it."""

    def unmarked(real: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(self: Any, *arguments: Any, **named: Any) -> Any:
            if isinstance(self, NativeEngine):
                with patch.object(self, "placements", dict.fromkeys(self.placements, REPLICATED)):
                    return real(self, *arguments, **named)
            for parameter in self.model.parameters():
                vars(parameter).pop("tensor_model_parallel", None)  # DeepSpeed's mark
            result = real(self, *arguments, **named)
            mark_sharded(self.model.parameters())
            return result

        return train_step

    with ExitStack() as stack:
        for engine in (NativeEngine, ZeroEngine):
            stack.enter_context(patch.object(engine, "train_step", unmarked(engine.train_step)))
        yield


def gradient_not_summed() -> Any:
    """Each rank's norms see a piece of the sequence only, and nothing adds up their gradients."""
    return patch.object(norm, "replicated_weight", lambda weight, group: weight)


def bias_of_every_rank() -> Any:
    """The bias behind a sum over the group is added by each rank before it."""
    real = layers.row_output

    def forward(self: layers.RowLinear, x: Tensor) -> Tensor:
        x = layers.sequence_first(x, self.tp)
        return real(torch.nn.functional.linear(x, self.weight, self.bias), self.tp)

    return patch.object(layers.RowLinear, "forward", forward)


def vocabulary_from_zero() -> Any:
    """Every rank takes the first tokens for its own."""
    real = Embedding.forward

    def forward(self: Embedding, tokens: Tensor) -> Tensor:
        with patch.object(self, "first", 0):
            return real(self, tokens)

    return patch.object(Embedding, "forward", forward)


def one_way(x: Tensor, dim: int, group: Any) -> Tensor:
    """Gathers the pieces of all ranks; the gradient does not find its way back to the others."""
    gathered, own = all_gather(x.detach(), dim, group), x.shape[dim]
    first = group.rank() * own
    before, _, after = gathered.split([first, own, gathered.shape[dim] - first - own], dim)
    return torch.cat([before, x, after], dim)


def heads_not_gathered() -> Any:
    """Where ranks share a key and value head, each knows its own term of the gradient alone."""
    return patch.object(attention, "all_gather", one_way)


def choices_not_summed() -> Any:
    """The weights of the experts have the gradient of this rank's part of each expert alone."""
    return patch.multiple(moe, all_gather=one_way, copy_to_group=lambda x, group: x)


def balance_of_a_piece() -> Any:
    """Each rank balances its piece of the sequence."""
    return patch.object(moe, "reduce_from_group", lambda x, group: x)


def returned_out_of_order() -> Any:
    """What the experts give is taken for that of other tokens."""
    real = moe.gather_from_experts

    def gather(y: Tensor, dispatch: Dispatch, weights: Tensor) -> Tensor:
        return real(y, dispatch._replace(inverse=dispatch.order, order=dispatch.inverse), weights)

    return patch.object(moe, "gather_from_experts", gather)


def divided_once_more() -> Any:
    """The gradients of experts are a mean over the ranks among which they are dealt out."""
    real = SeveralMasters.reduce

    def reduce(self: SeveralMasters) -> None:
        real(self)
        for held in self.parts[1].held:
            assert held.tensor.grad is not None
            held.tensor.grad /= 2

    return patch.object(SeveralMasters, "reduce", reduce)


def last_slice_alone() -> Any:
    """A rank's slice of a gradient is that of the last micro-batch."""
    real = GradientSlices._take_back

    def take_back(self: GradientSlices, left: int) -> None:
        for bucket, _ in list(self._on_their_way)[: len(self._on_their_way) - left]:
            self.slices[bucket].zero_()
        real(self, left)

    return patch.object(GradientSlices, "_take_back", take_back)


def own_experts_counted() -> Any:
    """The norm of the gradient has this rank's experts alone."""
    real = NativeEngine._where

    def where(self: NativeEngine, name: str) -> tuple[tuple[str, ...], bool]:
        dims, alone = real(self, name)
        return tuple(dim for dim in dims if dim != "expert"), alone

    return patch.object(NativeEngine, "_where", where)


def sent_back_out_of_order() -> Any:
    """What the experts give is sent back in another order than it came."""
    real = ExpertExchange.from_experts

    def from_experts(self: ExpertExchange, outputs: Tensor) -> Tensor:
        arrived = self.arrived._replace(inverse=self.arrived.order, order=self.arrived.inverse)
        return real(replace(self, arrived=arrived), outputs)

    return patch.object(ExpertExchange, "from_experts", from_experts)


@contextmanager
def mean_of_means() -> Iterator[None]:
    """Each rank divides by its own targets, and the ranks' means are averaged."""

    def own_mean(real: Callable[..., Any]) -> Callable[..., Any]:
        def train_step(self: Any, micro_batches: Sequence[Batch], targets: int, **named: Any) -> Any:
            own = sum(map(count_targets, micro_batches)) * self.mesh["data"].size
            return real(self, micro_batches, own, **named)._replace(targets=targets)

        return train_step

    with ExitStack() as stack:
        for engine in (NativeEngine, ZeroEngine):
            stack.enter_context(patch.object(engine, "train_step", own_mean(engine.train_step)))
        yield


def mask_dropped() -> Any:
    """One micro-batch of one rank loses its document numbers."""
    real = llmkit.parity.run.share

    def share(batch: Batch, rank: int, *rest: int) -> list[Batch]:
        micro_batches = real(batch, rank, *rest)
        if rank == 1:
            micro_batches[-1] = micro_batches[-1]._replace(documents=None)
        return micro_batches

    return patch.object(llmkit.parity.run, "share", share)


def rows_seen_twice() -> Any:
    """All data-parallel ranks take the rows of the first."""
    real = llmkit.parity.run.share
    return patch.object(llmkit.parity.run, "share", lambda batch, rank, *rest: real(batch, 0, *rest))


MISTAKES: dict[str, Mistake] = {
    each.__name__: each
    for each in (
        placements_missing, gradient_not_summed, bias_of_every_rank, vocabulary_from_zero, heads_not_gathered,
        mean_of_means, mask_dropped, rows_seen_twice,
    )
}  # fmt: skip
OF_EXPERTS: dict[str, Mistake] = {
    each.__name__: each for each in (choices_not_summed, balance_of_a_piece, returned_out_of_order)
}
WITH_DEALT_OUT: dict[str, Mistake] = {
    each.__name__: each
    for each in (divided_once_more, own_experts_counted, sent_back_out_of_order, last_slice_alone)
}
CASES = [
    Case("odd", stage, 2, 2, True, 3, "none", True, "fp32", "none") for stage in (0, 2)
]  # everything at once that a mistake may need
CASES_OF_EXPERTS = [Case("experts", 0, 2, 1, True, 3, "none", True, "fp32", "none")]

CASES_OF_DEALT_OUT = [Case("one-expert", 2, 1, 2, False, 3, "full", True, "fp32", "none", expert=2)]


def positions_restarted() -> Any:
    """Each piece of a row has the positions of the row's beginning."""
    real = Span.of.__func__

    def of(cls: type[Span], tokens: Tensor, cache: Any, piece: RowPiece | None = None) -> Span:
        beginning = ((0, tokens.shape[1]),)
        return real(cls, tokens, cache, None if piece is None else piece._replace(ranges=beginning))

    return patch.object(Span, "of", classmethod(of))


def edge_label_dropped() -> Any:
    """The last token of a piece has no target, as the token behind it is another rank's."""
    real = Batch.cut

    def cut(self: Batch, ranges: Ranges | None) -> Batch:
        found = real(self, ranges)
        if ranges is not None:
            found.labels[:, -1] = IGNORE
        return found

    return patch.object(Batch, "cut", cut)


def context_sum_missing() -> Any:
    """Gradients are summed over the ranks that have other rows, not over those with other pieces of them."""
    return patch.object(Placement, "summed", property(lambda self: ("data",)))


def documents_of_pieces() -> Any:
    """Documents are counted from the beginning of each piece, so that those of two pieces seem one."""
    real = Batch.cut

    def cut(self: Batch, ranges: Ranges | None) -> Batch:
        found = real(self, ranges)
        if ranges is None or found.piece is None or self.documents is None:
            return found
        form: Form = "ulysses" if len(ranges) == 1 else "ring"
        counted = self.documents.clone()
        for piece in row_pieces(self.tokens.shape[1], 2, form):
            for start, stop in piece:
                counted[:, start:stop] -= self.documents[:, start, None]
        return found._replace(piece=found.piece._replace(documents=counted))

    return patch.object(Batch, "cut", cut)


CONTEXT_MISTAKES: dict[str, Mistake] = {
    each.__name__: each
    for each in (positions_restarted, edge_label_dropped, context_sum_missing, documents_of_pieces)
}
CONTEXT_CASES = [
    Case(model, stage, 1, 1, False, 1, "none", True, "fp32", "none", context=2, context_form=form, length=37)
    for model, stage, form in (("gpt2", 0, "ulysses"), ("modern", 1, "ring"))
]


def context_failures() -> dict[str, dict[str, list[str]]]:
    """The same where ranks share rows."""
    return _failures(CONTEXT_MISTAKES, CONTEXT_CASES)


def failures() -> dict[str, dict[str, list[str]]]:
    """Mistake -> case -> what the comparison found; "" is without a mistake, tried last."""
    return _failures(MISTAKES, CASES)


def failures_with_experts() -> dict[str, dict[str, list[str]]]:
    """The same of mixtures of experts, and of those that ranks deal out."""
    found = _failures(OF_EXPERTS, CASES_OF_EXPERTS)
    dealt_out = _failures(WITH_DEALT_OUT, CASES_OF_DEALT_OUT)
    return {**found, **dealt_out, "": {**found[""], **dealt_out[""]}}


def _failures(mistakes: dict[str, Mistake], cases: list[Case]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    meshes = mesh_maker()
    for name, mistake in [*mistakes.items(), ("", ExitStack)]:
        with mistake(), patch.multiple(llmkit.parity.run, STEPS=2, GRADIENT_STEPS=(0, 1)):
            verdicts = run_cases(cases, meshes, torch.device("cpu"))
            found[name] = {str(verdict.case): verdict.failures for verdict in verdicts}
    return found
