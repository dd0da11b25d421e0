"""The decoder-only transformer; GPT-2 and Llama are two settings of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.batch import Batch, LossSum, RowPiece
from llmkit.config.derive import resolved_model
from llmkit.config.parameters import is_hidden
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.kernels.attention import decoding
from llmkit.kernels.compiler import compile_module, compile_pointwise
from llmkit.kernels.head_loss import CROSS_ENTROPY, LossTerms
from llmkit.kernels.head_loss_rows import report_to
from llmkit.kernels.operators import COMPILE_PARTS, TORCH, Operators
from llmkit.model.base import Initial, Model
from llmkit.model.block import Block
from llmkit.model.cache import CacheRows, KeyValueCache
from llmkit.model.dropout import DropoutKeys, group_dropout
from llmkit.model.initial import draw
from llmkit.model.moe import Router
from llmkit.model.norm import residual_norm
from llmkit.model.offload import HostCopies
from llmkit.model.positions import BlockInputs, RopeTables, Span, begins_of, shift
from llmkit.model.rope import rope_tables
from llmkit.model.routing import LOSSES, move_biases, routing_sums
from llmkit.model.vocabulary import Embedding, Head, Positions
from llmkit.parallel.collectives import reduce_from_group
from llmkit.parallel.context import WHOLE_ROWS, ContextParallel
from llmkit.parallel.mesh import ALL_EXPERTS, ExpertParallel, TensorParallel
from llmkit.parallel.slices import Shape

NO_TENSOR_PARALLELISM = TensorParallel()
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
"""Matrices that write into the residual stream."""


class GPT(Model):
    """Decoder-only transformer.

    operators: the functions that it calls. tp: the ranks over which the model is sharded. context: those that
    have pieces of the same rows; batches without a piece are computed on one rank all the same. experts:
    those over which experts are dealt out, and which compute together.
    activation_checkpointing: what every n-th block computes again in the backward pass ("none", "selective"
    or "full"), n being `activation_checkpointing_every`. loss_terms: what is added to the cross-entropy.
    mlp_tile: see `Block`. offload_activations: whether the inputs of blocks that are recomputed in full are
    kept on the host.
    seed: of the initial weights; None leaves them unset, for weights that are read from a checkpoint.

    has_weights: whether the parameters have been set since their memory was taken; without that (seed None,
    the meta device, `to_empty`) the model does not compute. Who sets them one by one sets this, too.
    """

    uses_every_parameter = True

    def __init__(
        self,
        shape: ModelShape,
        operators: Operators = TORCH,
        tp: TensorParallel = NO_TENSOR_PARALLELISM,
        activation_checkpointing: str = "none",
        activation_checkpointing_every: int = 1,
        loss_terms: LossTerms = CROSS_ENTROPY,
        seed: int | None = 0,
        context: ContextParallel = WHOLE_ROWS,
        experts: ExpertParallel = ALL_EXPERTS,
        mlp_tile: int = 0,
        offload_activations: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.tp, self.operators = shape, tp, operators
        self.context, self.experts = context, experts
        self.offload_activations = offload_activations
        self.has_weights = False
        self.vocab_size, self.context_length = shape.vocab_size, shape.max_position_embeddings
        sizes = (shape.vocab_size, shape.hidden_size, tp, shape.padded_vocab_size)
        self.embedding = Embedding(*sizes)
        self.positions: Positions | None = None
        self.rope: RopeTables | None = None
        self.sliding_rope: RopeTables | None = None
        if shape.position_embedding == "learned":
            self.positions = Positions(shape, tp)
        else:  # no buffers, so that they stay in fp32 whatever the type of the weights
            self._make_rope()
        rows = shape.bigram_embedding
        self.bigram_embedding = None if rows is None else Embedding(rows, shape.hidden_size, tp)
        self.embedding_norm = residual_norm(shape, tp, operators) if shape.embedding_norm else None
        checkpointing = [
            "none" if layer % activation_checkpointing_every else activation_checkpointing
            for layer in range(shape.num_hidden_layers)
        ]
        self.blocks = nn.ModuleList(
            Block(shape, layer, operators, tp, how, context, experts, mlp_tile)
            for layer, how in enumerate(checkpointing)
        )
        self.norm = residual_norm(shape, tp, operators)
        terms = loss_terms._replace(softcap=shape.final_logit_softcapping or 0.0)
        tied = self.embedding if shape.tie_word_embeddings else None
        self.head = Head(*sizes, tied, operators, terms, shape.logits_scaling)
        self.compiled = False
        if seed is not None and self._has_memory():
            draw(self, seed)

    @classmethod
    def build(cls, config: Config, vocab_size: int | None = None) -> GPT:
        """The model of a configuration with the initial weights of `run.seed`, for your own training loop.

        vocab_size: tokens of the tokenizer; needed unless model.vocab_size or the tokenizer's type says it.
        Raises ValueError where the settings make no model.
        """
        shape = resolved_model(config, vocab_size)
        if not isinstance(shape, ModelShape):
            raise ValueError(f"the configuration chooses the model type {shape.type}")
        return cls(shape, seed=config.run.seed)

    def _has_memory(self) -> bool:
        """Whether all parameters are here: not on the meta device, nor partitioned by ZeRO-3."""
        return not any(each.is_meta or hasattr(each, "ds_id") for each in self.parameters())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """See `nn.Module.load_state_dict`; a complete one counts as setting the weights."""
        found = super().load_state_dict(state_dict, strict, assign)
        self.has_weights = (self.has_weights or not found.missing_keys) and self._has_memory()
        self._move_rope()  # assigned parameters may be on another device
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPT:
        """Called by every method that moves a module to another device or type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._move_rope()
        return self

    def _move_rope(self) -> None:
        """Makes the rotary tables anew where the parameters are, unless they are there."""
        device = self.embedding.weight.device
        if self.rope is not None and self.rope[0].device != device:
            with torch.device(device):
                self._make_rope()

    def _make_rope(self) -> None:
        shape = self.shape
        scale = shape.attention_scale**0.5 if shape.tables_hold_scale else 1.0
        size = shape.max_position_embeddings, shape.rotary_dim
        self.rope = rope_tables(*size, shape.rope_theta, shape.rope_scaling, scale)
        if shape.sliding_rope_theta is not None:
            self.sliding_rope = rope_tables(*size, shape.sliding_rope_theta, scale=scale)

    def to_empty(self, *, device: str | torch.device | int | None, recurse: bool = True) -> GPT:
        """See `nn.Module.to_empty`; afterwards the weights are not set."""
        self.has_weights = False
        return super().to_empty(device=device, recurse=recurse)

    def compile_parts(self, report: Callable[[str], None], backend: str = "inductor") -> None:
        """Compiles one block, whose code serves all of them, the other norms, and the head with the loss.

        As fast as compiling the model at once, and compiled in one block's time. What cannot be compiled runs
        uncompiled, and `report` is called with the reason. Of blocks that are recomputed under ZeRO-3, in the
        midst of which DeepSpeed gathers weights, the pointwise functions are compiled. Nothing is of blocks
        whose experts are dealt out: they get another number of tokens in every step.
        """
        partitioned = any(hasattr(each, "ds_id") for each in self.parameters())
        for block in self.blocks:
            if block.has_experts and self.experts.size > 1:
                continue
            if partitioned and (block.activation_checkpointing != "none" or block.mlp_tile):
                compile_pointwise(block, self.operators, report, backend)
            else:
                compile_module(block, report, backend)
        for norm in (self.norm, self.embedding_norm):
            if norm is not None:
                compile_module(norm, report, backend)
        if self.operators.forms["head_loss"] in COMPILE_PARTS:
            self.head.compiled = "parts"
            report_to(report)
        else:
            self.head.compiled = "whole"
            compile_module(self.head, report, backend)
        self.compiled = True

    def forward(self, batch: Batch) -> LossSum:
        """The loss of each sequence, summed over its targets; the same on all tensor-parallel ranks."""
        learns = self.training and torch.is_grad_enabled() and not self.evaluating
        with group_dropout(self.shape, self.tp, self.training, batch.tokens.device) as keys:
            routers: list[Tensor] = []
            x = self.hidden(
                batch.tokens, batch.documents, keys=keys, bounds=batch.bounds, piece=batch.piece,
                routers=routers, limited=learns and self.shape.moe.capacity_factor is not None,
            )  # fmt: skip
            loss: LossSum = self.head(x, batch.labels)
        if not routers or not learns:
            return loss
        targets = loss.targets
        if batch.piece is not None:
            targets = reduce_from_group(targets, self.context.group)
        added = self._router_losses([report[:, :LOSSES] for report in routers], targets)
        routing = routing_sums(routers, targets, loss.targets)
        return loss._replace(extras={**loss.extras, **added}, routing=routing)

    def _router_losses(self, losses: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """What is added to the loss. losses: of each layer with experts, (batch, 2); see `Router`.

        targets: (batch,), of whole rows. Of each sequence as often as it has targets, so that means over
        targets are those over sequences. Of a piece of the sequences this is its term of the sum over the
        ranks that have the others.
        """
        moe, means = self.shape.moe, sum(losses[1:], losses[0]) / len(losses)
        balance, z = (means * targets[:, None]).sum(0)
        found = {
            "router_aux_loss": moe.router_aux_loss_coef * balance,
            "router_z_loss": moe.router_z_loss_coef * z,
        }  # fmt: skip
        return found if moe.router_z_loss_coef else {"router_aux_loss": found["router_aux_loss"]}

    def hidden(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        cache: CacheRows | None = None,
        keys: DropoutKeys | None = None,
        bounds: Tensor | None = None,
        piece: RowPiece | None = None,
        routers: list[Tensor] | None = None,
        limited: bool = False,
    ) -> Tensor:
        """tokens: (batch, seq) -> output of the last norm (batch, seq, hidden), or its piece of the sequence.

        keys: of the dropouts; None: PyTorch's generators serve. bounds: of the documents, piece: see `Batch`.
        routers: gets the report of the router of each layer with experts. limited: see `BlockInputs`.
        """
        if not self.has_weights:
            raise RuntimeError(
                "this GPT has no weights: its memory was taken and never set. GPT.build(config) draws "
                "initial ones, load_state_dict brings others; who sets them in another way sets has_weights"
            )
        keys = keys or DropoutKeys(None, [None] * len(self.blocks), [None] * len(self.blocks))
        span = Span.of(tokens, cache, piece)
        if self.compiled and bounds is not None:
            torch._dynamo.mark_dynamic(bounds, 0)  # another number of documents is not compiled anew
        shape, begins = self.shape, None
        if documents is not None and (shape.key_shift or self.bigram_embedding is not None):
            begins = begins_of(documents, piece)
        x = self._embed(tokens, span, documents if piece is None else piece.documents, keys)
        inputs = BlockInputs(
            rope=self.rope and span.rope(self.rope),
            sliding_rope=self.sliding_rope and span.rope(self.sliding_rope),
            documents=documents,
            bounds=bounds,
            piece=piece,
            cache=cache,
            tokens=tokens if shape.value_embeddings else None,
            begins=begins,
            # Not x itself: that one argument is the other would be compiled for the first block alone.
            embedding=x.view_as(x) if shape.residual_scalars else None,
            bigram=self._bigrams(tokens, begins, cache, piece),
            limited=limited,
        )
        host = HostCopies(x.device) if self.offload_activations else None
        for block, attention_key, mlp_key in zip(self.blocks, keys.attention, keys.mlp, strict=True):
            offloaded = host is not None and block.activation_checkpointing == "full"
            with host.kept(x) if host is not None and offloaded else nullcontext():
                found = block(x, inputs, attention_key, mlp_key)
            if block.has_experts:
                x, report = found
                if routers is not None:
                    routers.append(report)
            else:
                x = found
        return self.norm(x)

    def _bigrams(
        self, tokens: Tensor, begins: Tensor | None, cache: CacheRows | None, piece: RowPiece | None
    ) -> Tensor | None:
        """The vector of each token with the one before it, (batch, seq, hidden) or this rank's piece.

        A hash of both chooses the row of the table (modded-nanogpt; its constants).
        """
        if self.bigram_embedding is None:
            return None
        before = None if cache is None else cache.token_before(tokens)
        earlier = shift(tokens, begins, before, piece, self.context)
        row = (tokens * 36313 ^ earlier * 27191) % self.bigram_embedding.vocab_size
        vectors: Tensor = self.bigram_embedding(row)
        return vectors

    def _embed(self, tokens: Tensor, span: Span, documents: Tensor | None, keys: DropoutKeys) -> Tensor:
        """What enters the first block. documents: of whole rows."""
        x = self.embedding(tokens)
        if self.shape.embedding_multiplier != 1.0:
            x = x * self.shape.embedding_multiplier
        if self.positions is not None:
            x = x + self.positions(span.ids(documents, tokens.device))
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.training:
            x = self.operators.dropout(x, self.shape.hidden_dropout, keys.embedding)
        return x

    def new_cache(self) -> KeyValueCache:
        """See `Model.new_cache`."""
        return KeyValueCache(self.shape, self.embedding.weight, self.tp.size)

    def logits(self, tokens: Tensor, cache: CacheRows | None = None) -> Tensor:
        """See `Model.logits`. Collective under tensor parallelism; the same on all ranks."""
        assert not self.tp.sequence_parallel
        with decoding(tokens.device):
            hidden = self.hidden(tokens, cache=cache)
        if cache is None:
            return self.head.logits(hidden[:, -1])
        cache.advance()
        return self.head.logits(cache.last_of(hidden)[:, 0])

    def full_buffers(self) -> dict[str, Tensor]:
        """See `Model.full_buffers`: the biases of experts, in the order of the layers."""
        routers = ((path, each) for path, each in self.named_modules() if isinstance(each, Router))
        return {f"{path}.bias": each.bias for path, each in routers if each.bias is not None}

    def after_update(self, routing: Tensor | None, skipped: Tensor) -> None:
        """See `Model.after_update`. Where adapters alone are trained the biases stay as their base's are."""
        rate = self.shape.moe.bias_update_rate
        if routing is not None and rate and not self.adapted:
            move_biases(list(self.full_buffers().values()), routing, rate, skipped)

    @property
    def has_dropout(self) -> bool:
        """Whether any dropout is at work in training."""
        return any(block.random for block in self.blocks) or self.shape.hidden_dropout > 0.0

    def hidden_matrices(self) -> frozenset[str]:
        """See `Model.hidden_matrices`; their names say which they are (`FullTensor.hidden`)."""
        slices = self.parameter_slices().items()
        return frozenset(name for name, (first, *_) in slices if is_hidden(first.name, first.shape))

    def initial(self, name: str, shape: Shape) -> Initial:
        """See `Model.initial`. Matrices that write to the residual stream may start smaller, as in GPT-2."""
        if name.endswith("norm.weight"):
            return Initial(1.0 - self.shape.norm_weight_offset, 0.0)
        if name.endswith(".residual_scalars.stream"):
            return Initial(1.0, 0.0)
        if name.endswith((".bias", ".residual_scalars.embedding", ".gate.weight", "bigram_embedding.weight")):
            return Initial(0.0, 0.0)
        if name.endswith(".residual_scalars.bigram"):
            return Initial(0.05, 0.0)
        std = self.shape.initializer_range
        if name.endswith(RESIDUAL_OUTPUTS):
            layers = self.shape.num_hidden_layers
            std *= {"normal": 1.0, "scaled": (2 * layers) ** -0.5, "zero": 0.0}[self.shape.residual_init]
        own = {
            "embedding.weight": self.shape.embedding_initializer_range,
            "head.weight": self.shape.head_initializer_range,
        }.get(name)
        return Initial(0.0, std if own is None else own)
