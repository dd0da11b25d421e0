"""Names of tensors: those of llmkit's full tensors, and those of the classes of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from llmkit.parallel.slices import Box, Shape


class Stored(NamedTuple):
    """A tensor in a folder of Hugging Face's format.

    parts: names and shapes of the full tensors that it holds, one after the other along their first
    dimension. transposed: whether it is stored as (inputs, outputs). shape: as it is stored.
    """

    name: str
    parts: tuple[tuple[str, Shape], ...]
    transposed: bool

    @property
    def shape(self) -> Shape:
        """See the class."""
        rows = sum(size[0] for _, size in self.parts)
        whole = (rows, *self.parts[0][1][1:])
        return whole[::-1] if self.transposed else whole


class Place(NamedTuple):
    """Where a full tensor is: rows from `first` on of a stored tensor (columns, if that is transposed)."""

    stored: Stored
    first: int

    def region(self, box: Box) -> Box:
        """The region of the stored tensor that is this region of the full tensor."""
        (low, high), *rest = box
        moved = ((low + self.first, high + self.first), *rest)
        return moved[::-1] if self.stored.transposed else moved


@dataclass(frozen=True)
class Naming:
    """The names that a class of transformers gives to tensors.

    prefix: before all but the head. blocks: its list of blocks. top, block: our module -> theirs, at the top
    and in a block; {} stands for the number of an expert. fused: our modules that are one tensor there.
    conv1d: matrices of blocks are transposed. buffers: ends of the names of stored tensors that are computed
    from the settings (masks, frequencies).
    """

    prefix: str
    blocks: str
    top: Mapping[str, str]
    block: Mapping[str, str]
    conv1d: bool = False
    buffers: tuple[str, ...] = field(default=("rotary_emb.inv_freq",))

    def theirs(self, name: str) -> str:
        """Their name of the tensor that holds our full tensor."""
        owner, _, kind = name.rpartition(".")
        if not owner.startswith("blocks."):
            module = self.top[owner]
            return f"{module}.{kind}" if owner == "head" else f"{self.prefix}{module}.{kind}"
        _, number, inner = owner.split(".", 2)
        mlp, experts, module = inner.partition(".experts.")
        if not experts:
            return f"{self.prefix}{self.blocks}.{number}.{self.block[inner]}.{kind}"
        expert, _, projection = module.partition(".")
        theirs = self.block[f"{mlp}.experts.{projection}"].format(expert)
        return f"{self.prefix}{self.blocks}.{number}.{theirs}.{kind}"

    def stored(self, parameters: Mapping[str, Shape]) -> list[Stored]:
        """Their tensors for our full tensors, in our order. Raises KeyError for one that they do not have."""
        found: dict[str, list[tuple[str, Shape]]] = {}
        for name, shape in parameters.items():
            found.setdefault(self.theirs(name), []).append((name, shape))
        return [
            Stored(
                name,
                tuple(parts),
                self.conv1d and parts[0][0].startswith("blocks.") and len(parts[0][1]) == 2,
            )
            for name, parts in found.items()
        ]


def places(stored: list[Stored]) -> dict[str, Place]:
    """Full tensor -> where it is."""
    found = {}
    for tensor in stored:
        first = 0
        for name, shape in tensor.parts:
            found[name] = Place(tensor, first)
            first += shape[0]
    return found


_LLAMA_BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
_LLAMA_TOP = {"embedding": "embed_tokens", "norm": "norm", "head": "lm_head"}

LLAMA = Naming("model.", "layers", _LLAMA_TOP, _LLAMA_BLOCK)
MIXTRAL = Naming(
    "model.",
    "layers",
    _LLAMA_TOP,
    _LLAMA_BLOCK
    | {
        "mlp.router": "block_sparse_moe.gate",
        "mlp.experts.gate_proj": "block_sparse_moe.experts.{}.w1",
        "mlp.experts.down_proj": "block_sparse_moe.experts.{}.w2",
        "mlp.experts.up_proj": "block_sparse_moe.experts.{}.w3",
    },
)
QWEN3_MOE = Naming(
    "model.",
    "layers",
    _LLAMA_TOP,
    _LLAMA_BLOCK
    | {"mlp.router": "mlp.gate"}
    | {f"mlp.experts.{each}_proj": f"mlp.experts.{{}}.{each}_proj" for each in ("gate", "up", "down")},
)
"""Of OLMoE, too."""
OLMO2 = Naming(
    "model.",
    "layers",
    _LLAMA_TOP,
    _LLAMA_BLOCK
    | {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"},
)
GEMMA2 = Naming(
    "model.",
    "layers",
    _LLAMA_TOP,
    _LLAMA_BLOCK
    | {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
)
PHI3 = Naming(
    "model.",
    "layers",
    _LLAMA_TOP,
    _LLAMA_BLOCK
    | {f"attention.{each}_proj": "self_attn.qkv_proj" for each in "qkv"}
    | {f"mlp.{each}_proj": "mlp.gate_up_proj" for each in ("gate", "up")},
)
GPT2 = Naming(
    "transformer.",
    "h",
    {"embedding": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head"},
    {
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
        "attention.q_proj": "attn.c_attn",
        "attention.k_proj": "attn.c_attn",
        "attention.v_proj": "attn.c_attn",
        "attention.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    conv1d=True,
    buffers=(".attn.bias", ".attn.masked_bias"),
)
