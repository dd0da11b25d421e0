"""What the cases train: small models with awkward sizes, random weights, rows of unequal lengths."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.batch import IGNORE, Batch, document_bounds
from llmkit.config.lora_section import Lora
from llmkit.config.model_section import Moe, RopeScaling
from llmkit.config.shape import ModelShape
from llmkit.engine.state_shards import Source
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights
from llmkit.model.lora import add_adapters
from llmkit.parallel.slices import Box, Range, box_shape, full_box

ROWS = 6
"""Sequences of a global batch: 2 data-parallel ranks x 3 micro-batches."""
LENGTH = 32
SOURCES = 3
"""Of which the rows are, in turns."""

GPT2 = ModelShape(
    vocab_size=96, padded_vocab_size=96, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, head_dim=12, intermediate_size=100, max_position_embeddings=40, mlp="gelu",
    norm="layernorm", norm_eps=1e-5, position_embedding="learned", rope_theta=1e4, attention_bias=True,
    mlp_bias=True, qk_norm=False, sliding_window=None, tie_word_embeddings=True, attention_dropout=0.0,
    hidden_dropout=0.0, initializer_range=0.02, residual_init="scaled", vocab_pad_multiple=1,
)  # fmt: skip
MODERN = replace(
    GPT2, num_key_value_heads=2, head_dim=10, intermediate_size=72, mlp="swiglu", norm="rmsnorm",
    position_embedding="rope", attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
)  # fmt: skip
MODELS = {
    "gpt2": GPT2,
    "modern": MODERN,
    "odd": replace(
        MODERN, vocab_size=101, padded_vocab_size=101, num_key_value_heads=1, head_dim=16,
        tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
    ),
    "qk-norm": replace(MODERN, qk_norm=True, num_attention_heads=8, head_dim=8),
    "even": replace(
        MODERN, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
    ),
    "everything": replace(
        MODERN, mlp="relu2", norm_weight=False, qk_norm=True, embedding_norm=True, value_embeddings=True,
        residual_scalars=True, embedding_multiplier=1.5, attention_multiplier=0.4, residual_multiplier=0.7,
        logits_scaling=1.25, key_shift=0.5, bigram_embedding=77, final_logit_softcapping=5.0,
    ),
    "olmo": replace(
        MODERN, num_key_value_heads=1, norm_placement="post", qk_norm="full", mlp="geglu",
        attention_bias=True, partial_rotary_factor=0.6, attention_output_bias=False, attention_multiplier=0.4,
        rope_scaling=RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=12, beta_fast=3.0
        ),
    ),
    "gemma": replace(
        MODERN, head_dim=14, norm_placement="both", norm_weight_offset=1.0, qk_norm=True, mlp="geglu",
        sliding_window=9, layer_types=("sliding_attention", "full_attention"), sliding_rope_theta=30.0,
        attn_logit_softcapping=3.0, final_logit_softcapping=5.0, embedding_multiplier=1.5,
        rope_scaling=RopeScaling(rope_type="linear", factor=8.0), tie_word_embeddings=True,
    ),
    "experts": replace(
        MODERN, num_hidden_layers=3, norm_placement="both",
        moe=Moe(
            num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20,
            shared_expert_intermediate_size=24, first_dense_layers=1, router_aux_loss_coef=0.3,
            router_z_loss_coef=0.02, bias_update_rate=0.02,
        ),
    ),
    "sigmoid-experts": replace(
        MODERN, mlp="relu2",
        moe=Moe(
            num_experts=8, num_experts_per_tok=3, moe_intermediate_size=32, router="sigmoid",
            norm_topk_prob=False, router_aux_loss_coef=0.3, capacity_factor=0.9,
        ),
    ),
    "one-expert": replace(
        MODERN, num_hidden_layers=3, norm_placement="both",
        moe=Moe(
            num_experts=4, num_experts_per_tok=1, moe_intermediate_size=20, norm_topk_prob=False,
            shared_expert_intermediate_size=24, first_dense_layers=1, router_aux_loss_coef=0.3,
            router_z_loss_coef=0.02,
        ),
    ),
    "two-experts": replace(
        MODERN,
        moe=Moe(
            num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, router_aux_loss_coef=0.3,
        ),
    ),
    "all-experts": replace(
        MODERN,
        moe=Moe(
            num_experts=6, num_experts_per_tok=6, moe_intermediate_size=16, router_aux_loss_coef=0.0,
            router_z_loss_coef=0.02,
        ),
    ),
    "large": replace(
        GPT2, vocab_size=40_501, padded_vocab_size=40_501, hidden_size=256, head_dim=64, num_hidden_layers=1,
    ),
}  # fmt: skip
"""GPT-2 style: biases, LayerNorm, learned positions, tied head. Modern: RMSNorm, rope, SwiGLU, fewer key
and value heads than tensor-parallel ranks, a head of its own. Odd: a vocabulary that nothing divides, one
key and value head, tied. QK-norm: a norm on each head's query and key. Even: sizes that fp8
takes on two ranks. Everything: what recent small recipes add. Olmo, Gemma: what
published families add. Experts: a mixture in all layers but the first, in sizes that grouped products do not
take, with biases that balance it; another one in sizes that they take, with a capacity. One-expert,
two-experts: mixtures that 2 and 4 ranks can deal out, by the experts of a token. All-experts: one in which
each token takes all experts, so that rounding in bf16 cannot choose others. Large: an embedding of more
than 10 million elements, since a sum in fp32 may be wrong only where it is long."""


ADAPTERS = Lora(rank=3, alpha=7.0)


class RandomWeights(Source):
    """Start weights as a source of state, random in every part.

    Biases that start at 0 and norms that start at 1 would hide mistakes in their use.
    """

    def __init__(self, shape: ModelShape, adapters: bool = False) -> None:
        self.tensors: dict[str, Tensor] = {}
        with torch.device("meta"):
            model = GPT(shape, seed=None)
            if adapters:
                add_adapters(model, ADAPTERS)
        for name, size in InitialWeights(model, 0).shapes.items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            mean = model.initial(name, size).mean
            self.tensors[name] = torch.randn(size, generator=generator) * 0.1 + mean

    def names(self, kind: str) -> Collection[str]:
        """See `Source.names`."""
        return self.tensors if kind == "master" else ()

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """See `Source.read`."""
        tensor = self.tensors[name]
        box = full_box(tuple(tensor.shape)) if box is None else box
        flat = tensor[tuple(slice(lo, hi) for lo, hi in box)].reshape(-1)
        return flat.view(box_shape(box)) if range is None else flat[range[0] : range[1]]


def global_batch(shape: ModelShape, step: int, masked: bool, length: int = LENGTH) -> Batch:
    """The rows of one step, (ROWS, length): each has another number of targets.

    A mean of the micro-batches' or ranks' means then differs from the mean over all targets.
    """
    generator = torch.Generator().manual_seed(step)
    tokens, labels = torch.randint(shape.vocab_size, (2, ROWS, length), generator=generator).unbind()
    labels = labels.clone()
    for row in range(ROWS):
        labels[row, : 5 * row] = IGNORE
    starts = torch.rand(ROWS, length, generator=generator) < 0.15
    sources = torch.arange(ROWS)[:, None] % SOURCES == torch.arange(SOURCES)
    return Batch(tokens, labels, starts.cumsum(-1).int() if masked else None, sources=sources)


def share(batch: Batch, data_rank: int, data_size: int, accumulation: int) -> list[Batch]:
    """The micro-batches of one data-parallel rank."""

    def split(rows: Tensor) -> list[Tensor]:
        return list(rows.chunk(data_size)[data_rank].chunk(accumulation))

    assert batch.sources is not None
    parts = zip(split(batch.tokens), split(batch.labels), split(batch.sources), strict=True)
    micro_batches = [Batch(tokens, labels, sources=sources) for tokens, labels, sources in parts]
    if batch.documents is None:
        return micro_batches
    numbers = split(batch.documents)
    bounds = [document_bounds(F.pad(each.diff() != 0, (1, 0), value=True)) for each in numbers]
    return [
        b._replace(documents=n, bounds=at) for b, n, at in zip(micro_batches, numbers, bounds, strict=True)
    ]


def count_targets(batch: Batch) -> int:
    """How many positions of the batch have a target."""
    return int((batch.labels != IGNORE).sum())
