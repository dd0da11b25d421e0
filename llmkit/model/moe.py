"""A mixture of experts: a router sends each token to a few of many small MLPs (Shazeer et al. 2017).

Copies of the tokens are sorted by expert, and one grouped product serves all of them, however many go to one.
Tensor parallelism shards every expert as it shards an MLP. All ranks choose the same experts, since they
compute the scores from the same activations. Expert parallelism deals the experts out over ranks that have
other tokens, and sends each token to those that hold its experts (`llmkit.kernels.expert_exchange`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmkit.batch import RowPiece
from llmkit.config.model_section import Moe
from llmkit.config.parameters import INTO_MLP
from llmkit.config.shape import ModelShape
from llmkit.kernels.expert_exchange import ExpertExchange
from llmkit.kernels.experts import Dispatch, gather_from_experts, grouped_linear, scatter_to_experts
from llmkit.kernels.operators import Operators
from llmkit.model.layers import Layer, column_input, row_output, sequence_first, uninitialized_parameter
from llmkit.model.mlp import MLPS, make_mlp
from llmkit.model.routing import capacity, count_choices, entropies, within_capacity
from llmkit.parallel.collectives import (
    Group,
    all_gather,
    copy_to_group,
    reduce_from_group,
    replicated_weight,
)
from llmkit.parallel.context import WHOLE_ROWS, ContextParallel
from llmkit.parallel.mesh import ALL_EXPERTS, ExpertParallel, TensorParallel
from llmkit.parallel.placement import of_experts, place
from llmkit.parallel.slices import Box, ParameterSlice, full_slice

LEAST = 1e-20
"""Scores are divided by their sum, or by this where it is smaller: all of a token may round to 0."""


class Routing(NamedTuple):
    """Where the tokens go. weights: (batch, seq, k) fp32; experts: (batch, seq, k) int64, of all tokens of
    the tensor-parallel ranks even where activations are pieces of them.
    report: (batch, 5 + experts) fp32, see `Router`."""

    weights: Tensor
    experts: Tensor
    report: Tensor


class Router(Layer):
    """Scores of the experts for each token, in fp32, and the choice of the best ones.

    Its losses for each sequence, without their coefficients: the balance loss, experts x (choices of an
    expert / tokens) x (mean probability of it), summed over experts (Fedus et al. 2022; as transformers'
    `load_balancing_loss_func` for a layer and a sequence), and the mean square of log(sum(exp(scores)))
    (Zoph et al. 2022). Of a piece of the sequences (context parallelism) they are its terms of the sum over
    the ranks that have the others. Its report has, for each sequence, these two losses, and without a
    gradient the tokens, the entropies of their probabilities, the dropped choices and the load of each
    expert.

    bias: (experts,) fp32, added to what experts are chosen by (`Moe.bias_update_rate`); None: there is none.
    It is no parameter: `llmkit.model.routing.move_biases` changes it, and it stays in fp32.
    """

    bias: Tensor | None

    def __init__(self, width: int, settings: Moe, tp: TensorParallel, context: ContextParallel) -> None:
        super().__init__()
        self.settings, self.tp, self.context = settings, tp, context
        self.size = (settings.num_experts, width)
        self.weight = uninitialized_parameter(*self.size)
        biased = settings.bias_update_rate is not None
        self.register_buffer("bias", torch.zeros(self.size[0], dtype=torch.float32) if biased else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        """Called by every method that moves a module to another device or type; the bias keeps its type."""
        bias = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if bias is not None and self.bias is not None and self.bias.dtype != bias.dtype:
            self.bias = bias.to(self.bias.device)
        return self

    def forward(self, x: Tensor, piece: RowPiece | None = None, limited: bool = False) -> Routing:
        """x: (batch, seq, width), or its piece. piece: see `Batch`. limited: whether experts have a
        capacity."""
        weight = replicated_weight(self.weight, self.tp.sequence_group)
        scores = sequence_first(nn.functional.linear(x.float(), weight.float()), self.tp)
        probabilities, chosen, experts = self._choose(scores)  # (batch, seq or its piece, ...)
        pieces = self.tp.size if self.tp.sequence_parallel else 1
        length = scores.shape[1] * pieces if piece is None else piece.length
        others = None if piece is None else self.context.group
        choices = reduce_from_group(count_choices(experts, self.size[0]), self.tp.sequence_group)
        losses = self._losses(scores, probabilities, choices, length, others)
        entropy = reduce_from_group(entropies(probabilities), self.tp.sequence_group)
        if self.tp.sequence_parallel:
            # The gradient of the weights is a term on each rank, that of its part of every expert's output.
            chosen = all_gather(chosen, 1, self.tp.group)
            experts = all_gather(experts, 1, self.tp.group)
        else:
            chosen = copy_to_group(chosen, self.tp.group)
        tokens = torch.full_like(entropy, experts.shape[1])
        dropped = torch.zeros_like(entropy)
        if limited:
            kept = within_capacity(experts, self.size[0], capacity(self.settings, length))
            chosen = chosen.where(kept, 0.0)
            dropped = (~kept).sum((1, 2))[:, None].to(entropy.dtype)
        report = torch.cat((losses, tokens, entropy, dropped, choices), 1)
        return Routing(chosen, experts, report)

    def _choose(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities of all experts; weights and numbers of the chosen ones."""
        if self.settings.router == "softmax":
            values = probabilities = scores.softmax(-1)
        else:
            values = scores.sigmoid()
            probabilities = values / values.sum(-1, keepdim=True).clamp_min(LEAST)
        if self.bias is None:
            chosen, experts = values.topk(self.settings.num_experts_per_tok, dim=-1)
        else:
            experts = (values.detach() + self.bias).topk(self.settings.num_experts_per_tok, dim=-1)[1]
            chosen = values.gather(-1, experts)
        if self.settings.norm_topk_prob:
            chosen = chosen / chosen.sum(-1, keepdim=True).clamp_min(LEAST)
        return probabilities, chosen, experts

    def _losses(
        self, scores: Tensor, probabilities: Tensor, choices: Tensor, length: int, others: Group
    ) -> Tensor:
        """See the class.

        choices: (batch, experts), how often each was chosen. length: tokens of a sequence, all of them.
        others: the ranks that have its other pieces, or None.
        """
        share = reduce_from_group(choices, others) / length
        square = scores.logsumexp(-1).square().sum(1, keepdim=True)
        sums = torch.cat((probabilities.sum(1), square), 1)
        means = reduce_from_group(sums, self.tp.sequence_group) / length
        balance = self.size[0] * (share * means[:, :-1]).sum(-1)
        return torch.stack((balance, means[:, -1]), -1)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {"weight": [full_slice(f"{path}.weight", self.size)]}


class ExpertsInto(Layer):
    """The matrices that lead into a rank's experts, those of an expert behind each other.

    experts: how many there are on all ranks. projections: their names (gate_proj, up_proj). Each is sharded
    by its outputs.
    """

    def __init__(
        self,
        experts: int,
        inputs: int,
        outputs: int,
        projections: tuple[str, ...],
        tp: TensorParallel,
        ranks: ExpertParallel = ALL_EXPERTS,
    ) -> None:
        super().__init__()
        self.experts, self.inputs, self.outputs, self.projections = experts, inputs, outputs, projections
        self.tp, self.local, self.own = tp, outputs // tp.size, ranks.own(experts)
        rows = len(self.own) * len(projections) * self.local
        self.weight = uninitialized_parameter(rows, inputs, sharded_dim=0)
        if ranks.size > 1:
            place(self.weight, of_experts(0))

    def forward(self, x: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        """x: (rows, inputs), grouped by expert -> for each projection (rows, outputs / tp)."""
        weight = self.weight.view(len(self.own), -1, self.inputs)
        return grouped_linear(x, weight, ends).split(self.local, -1)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`. Of experts that other ranks hold the slices are empty."""
        owned = (self.tp.rank * self.local, (self.tp.rank + 1) * self.local)
        shape, slices, start = (self.outputs, self.inputs), [], 0
        parent = path.rpartition(".")[0]
        for expert in range(self.experts):
            for projection in self.projections:
                name = f"{parent}.{expert}.{projection}.weight"
                box: Box = (owned if expert in self.own else (0, 0), (0, self.inputs))
                stop = start + box[0][1] - box[0][0]
                slices.append(ParameterSlice(name, shape, box, start, stop))
                start = stop
        return {"weight": slices}


class ExpertsOut(Layer):
    """The matrices that lead out of a rank's experts, behind each other: (experts * outputs, inputs / tp).

    experts: how many there are on all ranks.
    """

    def __init__(
        self, experts: int, inputs: int, outputs: int, tp: TensorParallel, ranks: ExpertParallel = ALL_EXPERTS
    ) -> None:
        super().__init__()
        self.experts, self.inputs, self.outputs, self.tp = experts, inputs, outputs, tp
        self.local, self.own = inputs // tp.size, ranks.own(experts)
        self.weight = uninitialized_parameter(len(self.own) * outputs, self.local, sharded_dim=1)
        if ranks.size > 1:
            place(self.weight, of_experts(1))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x: (rows, inputs / tp), grouped by expert -> this rank's term of (rows, outputs)."""
        return grouped_linear(x, self.weight.view(len(self.own), self.outputs, self.local), ends)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`. Of experts that other ranks hold the slices are empty."""
        inputs = (self.tp.rank * self.local, (self.tp.rank + 1) * self.local)
        shape, slices, start = (self.outputs, self.inputs), [], 0
        parent = path.rpartition(".")[0]
        for expert in range(self.experts):
            box: Box = ((0, self.outputs if expert in self.own else 0), inputs)
            stop = start + box[0][1]
            slices.append(ParameterSlice(f"{parent}.{expert}.down_proj.weight", shape, box, start, stop))
            start = stop
        return {"weight": slices}


class SentTokens(NamedTuple):
    """Tokens between `Experts.send` and `Experts.mix`.

    tokens: (batch, seq, width), all of them. weights: see `Routing`. copies: gives those for this rank's
    experts, once they are there. exchange: with other ranks, where experts are dealt out.
    """

    tokens: Tensor
    weights: Tensor
    dispatch: Dispatch
    copies: Callable[[], Tensor]
    exchange: ExpertExchange | None = None


class Experts(nn.Module):
    """The experts of a layer; each is an MLP of the model's kind, without biases.

    ranks: over which they are dealt out; each computes with its own for the tokens of all of them.
    """

    def __init__(
        self,
        shape: ModelShape,
        tp: TensorParallel,
        operators: Operators,
        ranks: ExpertParallel = ALL_EXPERTS,
    ) -> None:
        super().__init__()
        moe, width, inner = shape.moe, shape.hidden_size, shape.expert_width
        self.tp, self.k, self.experts, self.ranks = tp, moe.num_experts_per_tok, moe.num_experts, ranks
        self.into = ExpertsInto(moe.num_experts, width, inner, INTO_MLP[shape.mlp], tp, ranks)
        self.down_proj = ExpertsOut(moe.num_experts, inner, width, tp, ranks)
        self.activation = getattr(operators, MLPS[shape.mlp].function)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x: (batch, seq, width), or its piece -> the weighted sum of the experts' outputs, like x.

        Where experts are dealt out, collective over their ranks, forward and backward.
        """
        return self.mix(self.send(x, routing))

    def send(self, x: Tensor, routing: Routing) -> SentTokens:
        """The first part of `forward`: copies of the tokens are on their way to their experts behind it."""
        whole = column_input(x, self.tp) if self.tp.size > 1 else x
        tokens = whole.reshape(-1, whole.shape[-1])
        dispatch = Dispatch.of(routing.experts.flatten(0, 1), self.experts)
        copies = scatter_to_experts(tokens, dispatch, self.k)
        if self.ranks.size == 1:
            return SentTokens(whole, routing.weights, dispatch, lambda: copies)
        exchange = ExpertExchange.of(dispatch, self.ranks)
        sent = exchange.send(copies)
        return SentTokens(whole, routing.weights, dispatch, lambda: exchange.at_experts(sent), exchange)

    def mix(self, sent: SentTokens) -> Tensor:
        """The second part of `forward`."""
        dispatch, exchange = sent.dispatch, sent.exchange
        ends = dispatch.ends if exchange is None else exchange.arrived.ends
        outputs = self.down_proj(self.activation(*self.into(sent.copies(), ends)), ends)
        if exchange is not None:
            outputs = exchange.from_experts(outputs)
        mixed = gather_from_experts(outputs, dispatch, sent.weights.flatten(0, 1)).view_as(sent.tokens)
        return row_output(sequence_first(mixed, self.tp), self.tp) if self.tp.size > 1 else mixed


class MixtureOfExperts(nn.Module):
    """experts(x), by the router's choice, and shared_expert(x), if there is one.

    Where experts are dealt out the shared one computes while tokens, or backward their gradients, are on
    their way between ranks.
    """

    def __init__(
        self,
        shape: ModelShape,
        tp: TensorParallel,
        operators: Operators,
        context: ContextParallel = WHOLE_ROWS,
        ranks: ExpertParallel = ALL_EXPERTS,
    ) -> None:
        super().__init__()
        self.router = Router(shape.hidden_size, shape.moe, tp, context)
        self.experts = Experts(shape, tp, operators, ranks)
        shared = shape.moe.shared_expert_intermediate_size
        self.shared_expert = (
            None
            if shared is None
            else make_mlp(shape.mlp, shape.hidden_size, shared, shape.mlp_bias, tp, operators)
        )

    def forward(
        self, x: Tensor, piece: RowPiece | None = None, limited: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x: (batch, seq, hidden), or its piece -> the same shape, and the router's report (batch, 5 +
        experts).

        piece: see `Batch`. limited: whether the experts have a capacity, if the settings give them one.
        """
        routing = self.router(x, piece, limited)
        sent = self.experts.send(x, routing)
        shared = None if self.shared_expert is None else self.shared_expert(x)
        mixed = self.experts.mix(sent)
        return (mixed if shared is None else mixed + shared), routing.report
