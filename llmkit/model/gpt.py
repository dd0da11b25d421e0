"""The whole model: GPT-2 and Llama are two settings of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from llmkit.batch import Batch, LossSum
from llmkit.config.shape import ModelShape
from llmkit.kernels.loss import head_loss, output_logits
from llmkit.model.attention import Attention, KeyValueCache
from llmkit.model.init import normal_
from llmkit.model.layers import Embedding, Linear, StackedLinear
from llmkit.model.mlp import make_mlp
from llmkit.model.norm import make_norm
from llmkit.model.rope import rope_tables
from llmkit.parallel.spec import Part, full

RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
"""Matrices that write into the residual stream: GPT-2 starts them smaller."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: ModelShape, layer: int, backend: str) -> None:
        super().__init__()
        self.attention_norm = make_norm(shape.norm, shape.hidden_size, shape.norm_eps)
        self.attention = Attention(shape, layer, backend)
        self.mlp_norm = make_norm(shape.norm, shape.hidden_size, shape.norm_eps)
        self.mlp = make_mlp(shape.mlp, shape.hidden_size, shape.intermediate_size, shape.mlp_bias)
        self.dropout = shape.hidden_dropout

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x: (batch, seq, hidden) -> (batch, seq, hidden)."""
        mixed = self.attention(self.attention_norm(x), rope, documents, cache)
        x = x + dropout(mixed, self.dropout, self.training)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class GPT(nn.Module):
    """Decoder-only transformer; `backend` is the attention form (llmkit.kernels.attention)."""

    def __init__(self, shape: ModelShape, backend: str = "sdpa") -> None:
        super().__init__()
        self.shape = shape
        self.embedding = Embedding(shape.padded_vocab_size, shape.hidden_size)
        self.cos: Tensor
        self.sin: Tensor
        self.positions: Embedding | None = None
        if shape.position_embedding == "learned":
            self.positions = Embedding(shape.max_position_embeddings, shape.hidden_size)
        else:
            cos, sin = rope_tables(shape.max_position_embeddings, shape.head_dim, shape.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(shape, i, backend) for i in range(shape.num_hidden_layers))
        self.norm = make_norm(shape.norm, shape.hidden_size, shape.norm_eps)
        self.head: Linear | None = None
        if not shape.tie_word_embeddings:
            self.head = Linear(shape.hidden_size, shape.padded_vocab_size, bias=False)
        self.head_loss: Callable[[Tensor, Tensor, Tensor, int], LossSum] = head_loss

    def compile_parts(self) -> None:
        """Compiles a block, once for all of them, and the head with the loss.

        As fast as compiling the whole model, and ready after one block's time instead of all blocks'.
        """
        for block in self.blocks:
            block.compile(dynamic=False)
        self.head_loss = torch.compile(head_loss, dynamic=False)

    def hidden(
        self, tokens: Tensor, documents: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """tokens: (batch, seq) -> the last norm's output (batch, seq, hidden)."""
        start = 0 if cache is None else cache.length
        stop = start + tokens.shape[1]
        x, rope = self.embedding(tokens), None
        if self.positions is not None:
            x = x + self.positions(position_ids(start, stop, documents, tokens.device))
        else:
            rope = (self.cos[start:stop], self.sin[start:stop])
        x = dropout(x, self.shape.hidden_dropout, self.training)
        for block in self.blocks:
            x = block(x, rope, documents, cache)
        return self.norm(x)

    def head_weight(self) -> Tensor:
        """The output projection, (padded_vocab, hidden)."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(self, batch: Batch) -> LossSum:
        """The loss of each row, summed over its targets."""
        hidden = self.hidden(batch.tokens, batch.documents)
        return self.head_loss(hidden, self.head_weight(), batch.labels, self.shape.vocab_size)

    def logits(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits of what follows the last token: (batch, seq) -> (batch, vocab), fp32.

        With a cache, `tokens` are only those that it does not hold yet.
        """
        last = self.hidden(tokens, cache=cache)[:, -1]
        if cache is not None:
            cache.length += tokens.shape[1]
        size = self.shape.vocab_size
        return output_logits(last, self.head_weight(), size)[:, :size]

    def parts(self) -> dict[str, list[Part]]:
        """For each parameter, the named tensors that lie in it (see llmkit.parallel.spec)."""
        stacks = {name: m for name, m in self.named_modules() if isinstance(m, StackedLinear)}
        parts: dict[str, list[Part]] = {}
        for name, parameter in self.named_parameters():
            owner, _, kind = name.rpartition(".")
            size = tuple(parameter.shape)
            if owner in stacks:
                parts[name] = list(_stacked_parts(owner.rpartition(".")[0], kind, stacks[owner], size))
            elif name in ("embedding.weight", "head.weight"):
                parts[name] = [full(name, (self.shape.vocab_size, *size[1:]))]
            else:
                parts[name] = [full(name, size)]
        return parts

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fills every parameter (fp32) from (seed, name, element index); padding rows become 0."""
        deep = (2 * self.shape.num_hidden_layers) ** -0.5 if self.shape.scaled_residual_init else 1.0
        parameters = dict(self.named_parameters())
        for parameter_name, parts in self.parts().items():
            parameter = parameters[parameter_name].zero_()
            for part in parts:
                rows = parameter[part.start : part.stop]
                if part.name.endswith("norm.weight"):
                    rows.fill_(1.0)
                elif not part.name.endswith(".bias"):
                    scale = deep if part.name.endswith(RESIDUAL_OUTPUTS) else 1.0
                    normal_(rows, self.shape.initializer_range * scale, seed=seed, name=part.name)


def position_ids(start: int, stop: int, documents: Tensor | None, device: torch.device) -> Tensor:
    """Positions start..stop-1, or (batch, seq) counted from each document's first position."""
    positions = torch.arange(start, stop, device=device)
    if documents is None:
        return positions
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return positions - torch.where(first, positions, 0).cummax(-1).values


def _stacked_parts(path: str, kind: str, stack: StackedLinear, size: tuple[int, ...]) -> Iterator[Part]:
    """One part for each projection of a stack; `kind` is "weight" or "bias"."""
    start = 0
    for name, width in stack.projections.items():
        shape = (width, *size[1:])
        box = tuple((0, n) for n in shape)
        yield Part(f"{path}.{name}.{kind}", shape, box, start, start + width)
        start += width
