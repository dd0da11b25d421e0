"""What blocks keep for their backward pass where adapters alone are trained; counted as `activations` is.

A frozen layer does not need its inputs for the gradient of its weight; an adapter needs them, and what its A
gives.
"""

from __future__ import annotations

from llmkit.config.adapters import is_target
from llmkit.config.parameters import INTO_MLP
from llmkit.config.shape import ModelShape
from llmkit.plan.arithmetic import Arithmetic, Recompute
from llmkit.precision import BYTES

FP32 = BYTES["fp32"]
QKV = ("q_proj", "k_proj", "v_proj")


def adapted(shape: ModelShape, how: Arithmetic) -> dict[str, float]:
    """Kind of linear layer -> share of the blocks in which that kind has an adapter; experts have none."""
    found = dict.fromkeys((*QKV, "o_proj", *INTO_MLP[shape.mlp], "down_proj"), 0.0)
    for tensor in shape.tensors:
        if tensor.linear:
            layer = tensor.name.removesuffix(".weight")
            kind, has_one = layer.rpartition(".")[2], is_target(layer, how.lora.targets)
            found[kind] = found.get(kind, 0.0) + has_one / shape.num_hidden_layers
    return found


def adapter_parts(
    shape: ModelShape, how: Arithmetic, recompute: Recompute, *, fp32_norms: bool
) -> dict[str, float]:
    """Bytes a token that a block keeps more than with all weights trained, by kind; fewer are negative.

    fp32_norms: whether RMS norms keep fp32 copies.
    """
    if not how.lora.rank or recompute == "full":
        return {}
    share, size = adapted(shape, how), how.bytes
    into_mlp, width = INTO_MLP[shape.mlp], _mlp_width(shape)
    low = {kind: size * how.lora.rank * each for kind, each in share.items()}
    found = {
        "attention": sum(low[kind] for kind in (*QKV, "o_proj")),
        "mlp": sum(low[kind] for kind in (*into_mlp, "down_proj")),
    }
    if recompute == "selective":
        residual = _results(shape, how, share, found)
    else:
        residual = _norms(shape, how, share, fp32_norms)
        found["mlp"] -= size * width * (1.0 - share["down_proj"])
        found["attention"] += _heads(shape, how, share)
        if len(into_mlp) == 2 and share[into_mlp[0]] != share[into_mlp[1]]:  # the other holds both
            found["mlp"] += size * width * max(share[kind] for kind in into_mlp)
        if shape.expert_layers:  # frozen experts keep no inputs
            chosen = size * shape.moe.num_experts_per_tok
            found["mlp"] -= chosen * shape.expert_width
            found["copies of tokens for experts"] = _router_input(shape, how) - chosen * shape.hidden_size
    return {"residual stream and norms": residual, **found}


def _mlp_width(shape: ModelShape) -> int:
    """Width of the MLP that may have adapters; experts have none."""
    shared = shape.moe.shared_expert_intermediate_size or 0
    return shared if shape.expert_layers else shape.intermediate_size


def _router_input(shape: ModelShape, how: Arithmetic) -> float:
    """In fp32 it is not kept, as the router is frozen: less than `activations` counts."""
    if not shape.expert_layers or how.bytes == FP32:
        return 0.0
    alone = shape.moe.shared_expert_intermediate_size is None
    return -float((FP32 - how.bytes * alone) * shape.hidden_size)


def _results(shape: ModelShape, how: Arithmetic, share: dict[str, float], found: dict[str, float]) -> float:
    """Products of adapters are results that selective recomputation keeps, the last one where it is read."""
    query = shape.num_attention_heads * shape.head_dim
    grouped = shape.num_key_value_heads * shape.head_dim
    outputs = share["q_proj"] * query + (share["k_proj"] + share["v_proj"]) * grouped
    found["attention"] += how.bytes * outputs
    products = sum(share[kind] for kind in INTO_MLP[shape.mlp])
    found["mlp"] += how.bytes * _mlp_width(shape) * products
    last = share["down_proj"] if not how.compiled or shape.norm_placement != "pre" else 0.0
    return how.bytes * shape.hidden_size * (share["o_proj"] + last)


def _norms(shape: ModelShape, how: Arithmetic, share: dict[str, float], fp32_norms: bool) -> float:
    """What norms give is kept where an adapter reads it; of their inputs only fp32 copies, if any."""
    width, size, kept = shape.hidden_size, how.bytes, 0.0
    if fp32_norms:
        norms = 4 if shape.norm_placement == "both" else 2
        copies = FP32 * shape.norm_weight + size % FP32
        kept += (norms * (FP32 - copies) - 2.0 * size) * width
    if shape.norm_placement == "pre":
        readers = max(share[kind] for kind in QKV), max(share[kind] for kind in INTO_MLP[shape.mlp])
        kept -= sum(size * width * (1.0 - each) for each in readers)
    return kept


def _heads(shape: ModelShape, how: Arithmetic, share: dict[str, float]) -> float:
    """Queries, keys and values are views of one product; with what adapters add, tensors of their own."""
    query = shape.num_attention_heads * shape.head_dim
    grouped = shape.num_key_value_heads * shape.head_dim
    if shape.position_embedding == "rope":  # rotated ones are new; of the product values alone are kept
        plain = not (shape.qk_norm or shape.key_shift or shape.value_embeddings)
        return -how.bytes * (query + grouped) * share["v_proj"] * plain
    if len({share[kind] for kind in QKV}) == 1:
        return 0.0
    return how.bytes * (share["q_proj"] * query + (share["k_proj"] + share["v_proj"]) * grouped)
