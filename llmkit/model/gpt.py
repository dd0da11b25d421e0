"""The whole model: GPT-2 and Llama are two settings of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.batch import Batch, LossSum
from llmkit.config.derive import resolved_model
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.kernels.compiler import compile_module
from llmkit.model.activation_checkpointing import recomputed
from llmkit.model.attention import Attention
from llmkit.model.base import Initial, Model
from llmkit.model.cache import KeyValueCache
from llmkit.model.dropout import Key, dropout, group_dropout
from llmkit.model.initial import draw
from llmkit.model.mlp import make_mlp
from llmkit.model.norm import make_norm
from llmkit.model.rope import rope_tables
from llmkit.model.vocabulary import Embedding, Head, Positions
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.placement import Shard, placement
from llmkit.parallel.slices import Shape, full_box

UNCUT = TensorParallel()
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
"""Matrices that write into the residual stream: GPT-2 starts them smaller."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). With sequence parallelism x is a piece of the sequence.

    activation_checkpointing: what is computed again in the backward pass ("none", "selective" or "full").
    """

    def __init__(
        self,
        shape: ModelShape,
        layer: int,
        attention_impl: str,
        tensor: TensorParallel,
        activation_checkpointing: str,
    ) -> None:
        super().__init__()
        group = tensor.group if tensor.sequence_parallel else None
        self.attention_norm = make_norm(shape.norm, shape.hidden_size, shape.norm_eps, group)
        self.attention = Attention(shape, layer, attention_impl, tensor)
        self.mlp_norm = make_norm(shape.norm, shape.hidden_size, shape.norm_eps, group)
        self.mlp = make_mlp(shape.mlp, shape.hidden_size, shape.intermediate_size, shape.mlp_bias, tensor)
        self.dropout, self.activation_checkpointing = shape.hidden_dropout, activation_checkpointing
        self.random = shape.hidden_dropout > 0.0 or shape.attention_dropout > 0.0

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        keys: Sequence[Key] = (None, None),
    ) -> Tensor:
        """x: (batch, seq, hidden) -> (batch, seq, hidden); keys: of its two dropouts."""
        random = self.random and self.training
        return recomputed(
            self.activation_checkpointing, self._forward, x, rope, documents, cache, keys, random=random
        )

    def _forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        documents: Tensor | None,
        cache: KeyValueCache | None,
        keys: Sequence[Key],
    ) -> Tensor:
        mixed = self.attention(self.attention_norm(x), rope, documents, cache)
        x = x + dropout(mixed, self.dropout, self.training, keys[0])
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training, keys[1])


class GPT(Model):
    """Decoder-only transformer.

    attention_impl: the attention form (llmkit.kernels.attention). tensor: the group of processes over which
    the model is sharded. activation_checkpointing: what every n-th block computes again in the backward pass,
    n being `activation_checkpointing_every` ("none", "selective" or "full"). seed: of the initial weights;
    None leaves them unset, for weights that are read from a checkpoint.

    has_weights: whether the parameters have been set since their memory was taken; without that (seed None,
    the meta device, `to_empty`) the model does not compute. Who sets them one by one sets this, too.
    """

    def __init__(
        self,
        shape: ModelShape,
        attention_impl: str = "sdpa",
        tensor: TensorParallel = UNCUT,
        activation_checkpointing: str = "none",
        activation_checkpointing_every: int = 1,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        self.shape, self.tensor, self.has_weights = shape, tensor, False
        self.vocab_size, self.context_length = shape.vocab_size, shape.max_position_embeddings
        self.embedding = Embedding(shape, tensor)
        self.positions: Positions | None = None
        self.rope: tuple[Tensor, Tensor] | None = None
        if shape.position_embedding == "learned":
            self.positions = Positions(shape, tensor)
        else:  # no buffers: these stay in fp32 whatever becomes of the weights
            self.rope = rope_tables(shape.max_position_embeddings, shape.head_dim, shape.rope_theta)
        again = [
            "none" if layer % activation_checkpointing_every else activation_checkpointing
            for layer in range(shape.num_hidden_layers)
        ]
        self.blocks = nn.ModuleList(
            Block(shape, i, attention_impl, tensor, how) for i, how in enumerate(again)
        )
        group = tensor.group if tensor.sequence_parallel else None
        self.norm = make_norm(shape.norm, shape.hidden_size, shape.norm_eps, group)
        self.head = Head(shape, tensor, self.embedding if shape.tie_word_embeddings else None)
        self.compiled = False
        if seed is not None and self._has_memory():
            draw(self, seed)

    @classmethod
    def build(cls, config: Config, vocab_size: int | None = None) -> GPT:
        """The model of a configuration, with the initial weights of `run.seed`, for a loop of one's own.

        vocab_size: tokens of the tokenizer; needed unless model.vocab_size or the tokenizer's type says it.
        Raises ValueError where the settings make no model.
        """
        shape = resolved_model(config, vocab_size)
        if not isinstance(shape, ModelShape):
            raise ValueError(f"the configuration chooses the model type {shape.type}")
        return cls(shape, seed=config.run.seed)

    def _has_memory(self) -> bool:
        """Whether all parameters are here: not on the meta device, nor cut by ZeRO-3 at their birth."""
        return not any(each.is_meta or hasattr(each, "ds_id") for each in self.parameters())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of every module; a whole one sets the weights."""
        found = super().load_state_dict(state_dict, strict, assign)
        self.has_weights = (self.has_weights or not found.missing_keys) and self._has_memory()
        self._place_rope()  # assigned parameters may lie on another device
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GPT:
        """What every move to another device or type goes through."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_rope()
        return self

    def _place_rope(self) -> None:
        """Makes the tables of the rotation where the parameters are."""
        device = self.embedding.weight.device
        if self.rope is not None and self.rope[0].device != device:
            shape = self.shape
            with torch.device(device):
                self.rope = rope_tables(shape.max_position_embeddings, shape.head_dim, shape.rope_theta)

    def to_empty(self, *, device: str | torch.device | int | None, recurse: bool = True) -> GPT:
        """As of every module; what lies in the new memory is not set."""
        self.has_weights = False
        return super().to_empty(device=device, recurse=recurse)

    def compile_parts(self, report: Callable[[str], None], backend: str = "inductor") -> None:
        """Compiles a block, once for all of them, and the head with the loss.

        As fast as compiling the whole model, and ready after one block's time instead of all blocks'.
        What cannot be compiled runs as it is, and `report` is told.
        """
        for part in (*self.blocks, self.head):
            compile_module(part, report, backend)
        self.compiled = True

    def forward(self, batch: Batch) -> LossSum:
        """The loss of each row, summed over its targets; the same on all ranks of a tensor-parallel group."""
        with group_dropout(self.shape, self.tensor, self.training, batch.tokens.device) as keys:
            return self.head(self.hidden(batch.tokens, batch.documents, keys=keys), batch.labels)

    def hidden(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        keys: Sequence[Key] | None = None,
    ) -> Tensor:
        """tokens: (batch, seq) -> the last norm's output (batch, seq or its piece, hidden)."""
        if not self.has_weights:
            raise RuntimeError(
                "this GPT has no weights: its memory was taken and never set. GPT.build(config) draws "
                "initial ones, load_state_dict brings others; who sets them in another way sets has_weights"
            )
        start = 0 if cache is None else cache.length
        stop = start + tokens.shape[1]
        keys = keys or [None] * (2 * len(self.blocks) + 1)
        x, rope = self.embedding(tokens), None
        if self.positions is not None:
            x = x + self.positions(self._own_piece(position_ids(start, stop, documents, tokens.device)))
        elif self.rope is not None:
            rope = (self.rope[0][start:stop], self.rope[1][start:stop])
        x = dropout(x, self.shape.hidden_dropout, self.training, keys[0])
        for number, block in enumerate(self.blocks):
            x = block(x, rope, documents, cache, keys[2 * number + 1 : 2 * number + 3])
        return self.norm(x)

    def new_cache(self) -> KeyValueCache:
        """See `Model.new_cache`."""
        return KeyValueCache(self.shape, 1, self.context_length, self.embedding.weight)

    def logits(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """See `Model.logits`. For a model that is not cut."""
        assert self.tensor.size == 1
        last = self.hidden(tokens, cache=cache)[:, -1]
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.head.logits(last)

    @property
    def has_dropout(self) -> bool:
        """Whether any dropout is at work in training."""
        return self.shape.attention_dropout > 0.0 or self.shape.hidden_dropout > 0.0

    def initial(self, name: str, shape: Shape) -> Initial:
        """See `Model.initial`; matrices that write to the residual stream may start smaller, as in GPT-2."""
        if name.endswith(("norm.weight", ".bias")):
            return Initial(float(name.endswith(".weight")), 0.0)
        scaled = self.shape.scaled_residual_init and name.endswith(RESIDUAL_OUTPUTS)
        depth = (2 * self.shape.num_hidden_layers) ** -0.5 if scaled else 1.0
        return Initial(0.0, self.shape.initializer_range * depth)

    def check_placements(self) -> None:
        """Asserts that each parameter is placed along the tensor dimension as its parts say."""
        if self.tensor.size == 1:
            return
        parts, vocabulary = self.parameter_slices(), ("embedding.weight", "head.weight")
        for name, parameter in self.named_parameters():
            dims = {
                dim
                for part in parts[name]
                for dim, (held, all_of_it) in enumerate(zip(part.box, full_box(part.shape), strict=True))
                if held != all_of_it
            }
            if name in vocabulary:
                dims = {0}  # a small vocabulary may lie on one rank
            along = placement(parameter)["tensor"]
            assert dims == ({along.dim} if isinstance(along, Shard) else set()), name

    def _own_piece(self, positions: Tensor) -> Tensor:
        """positions: (..., seq) -> those of this rank's piece of the sequence, if that is cut."""
        if not self.tensor.sequence_parallel:
            return positions
        return positions.unflatten(-1, (self.tensor.size, -1))[..., self.tensor.rank, :]


def position_ids(start: int, stop: int, documents: Tensor | None, device: torch.device) -> Tensor:
    """Positions start..stop-1, or (batch, seq) counted from each document's first position."""
    positions = torch.arange(start, stop, device=device)
    if documents is None:
        return positions
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return positions - torch.where(first, positions, 0).cummax(-1).values
