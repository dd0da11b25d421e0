"""The GPT written out in plain PyTorch, from the full tensors: every setting, nothing fused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmkit.config.model_section import UNSCALED, RopeScaling
from llmkit.config.shape import ModelShape
from llmkit.model.base import Model
from llmkit.model.rope import attention_factor, rope_frequencies

Tensors = Mapping[str, Tensor]


def full_tensors(model: Model) -> dict[str, Tensor]:
    """Name -> full tensor in float64 with a gradient of its own, of a model on one rank."""
    weights, full = dict(model.named_parameters()), {}
    for name, parts in model.parameter_slices().items():
        for part in parts:
            full[part.name] = weights[name].detach()[part.start : part.stop].double().requires_grad_()
    for weight, parts in model.quantised_weights().values():
        values = weight.values(torch.float32).double()
        full |= {part.name: values[part.start : part.stop] for part in parts}
    return full


def hidden(shape: ModelShape, full: Tensors, tokens: Tensor) -> Tensor:
    """tokens: (batch, seq) -> output of the last norm (batch, seq, hidden)."""
    x = full["embedding.weight"][tokens] * shape.embedding_multiplier
    if shape.position_embedding == "learned":
        x = x + full["positions.weight"][: tokens.shape[1]]
    if shape.embedding_norm:
        x = norm(shape, full, "embedding_norm", x)
    x0 = x
    for layer in range(shape.num_hidden_layers):
        at = f"blocks.{layer}"
        if shape.residual_scalars:
            stream, embedding = (full[f"{at}.residual_scalars.{each}"] for each in ("stream", "embedding"))
            x = stream * x + embedding * x0
        if shape.bigram_embedding is not None:
            before = torch.nn.functional.pad(tokens[:, :-1], (1, 0))
            pairs = (tokens * 36313 ^ before * 27191) % shape.bigram_embedding
            x = x + full[f"{at}.residual_scalars.bigram"] * full["bigram_embedding.weight"][pairs]
        before, behind = shape.norm_placement != "post", shape.norm_placement != "pre"
        y = norm(shape, full, f"{at}.attention_norm", x) if before else x
        mixed = attention(shape, full, layer, y, tokens)
        mixed = norm(shape, full, f"{at}.attention_post_norm", mixed) if behind else mixed
        x = x + shape.residual_multiplier * mixed
        y = norm(shape, full, f"{at}.mlp_norm", x) if before else x
        up = linear(full, f"{at}.mlp.up_proj", y)
        if shape.mlp == "swiglu":
            gate = linear(full, f"{at}.mlp.gate_proj", y)
            inner = gate * torch.sigmoid(gate) * up
        elif shape.mlp == "geglu":
            inner = gelu(linear(full, f"{at}.mlp.gate_proj", y)) * up
        elif shape.mlp == "relu2":
            inner = up.clamp(min=0.0) ** 2
        else:
            inner = gelu(up)
        out = linear(full, f"{at}.mlp.down_proj", inner)
        out = norm(shape, full, f"{at}.mlp_post_norm", out) if behind else out
        x = x + shape.residual_multiplier * out
    return norm(shape, full, "norm", x)


def gelu(x: Tensor) -> Tensor:
    """In the tanh approximation."""
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def logits(shape: ModelShape, full: Tensors, tokens: Tensor) -> Tensor:
    """tokens: (batch, seq) -> (batch, seq, vocab)."""
    matrix = full["embedding.weight" if shape.tie_word_embeddings else "head.weight"]
    found = hidden(shape, full, tokens) @ matrix.T / shape.logits_scaling
    cap = shape.final_logit_softcapping
    return found if cap is None else cap * torch.tanh(found / cap)


def attention(shape: ModelShape, full: Tensors, layer: int, x: Tensor, tokens: Tensor) -> Tensor:
    """x: (batch, seq, hidden), the output of the norm -> what is added to the residual stream."""
    batch, seq, _ = x.shape
    at = f"blocks.{layer}.attention"
    q, k, v = (linear(full, f"{at}.{each}_proj", x) for each in "qkv")
    if shape.qk_norm == "full":
        q, k = norm(shape, full, f"{at}.q_norm", q, rms=True), norm(shape, full, f"{at}.k_norm", k, rms=True)
    q, k, v = (each.view(batch, seq, -1, shape.head_dim).transpose(1, 2) for each in (q, k, v))
    # (batch, heads, seq, head_dim)
    if f"{at}.value_embedding.weight" in full:
        gate = head_gates(full, f"{at}.value_embedding.gate", x)
        table = full[f"{at}.value_embedding.weight"][tokens].view(batch, seq, -1, shape.head_dim)
        v = v + (gate[..., None] * table).transpose(1, 2)
    if shape.key_shift:
        half = shape.head_dim // 2
        slow = torch.arange(shape.head_dim) % half >= half - round(shape.key_shift * half)
        k = torch.where(slow, torch.nn.functional.pad(k[:, :, :-1], (0, 0, 1, 0)), k)
    if shape.qk_norm is True:
        q, k = norm(shape, full, f"{at}.q_norm", q, rms=True), norm(shape, full, f"{at}.k_norm", k, rms=True)
    if shape.position_embedding == "rope":
        q, k = rotated(shape, layer, q), rotated(shape, layer, k)
    groups = shape.num_attention_heads // shape.num_key_value_heads
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scale = shape.attention_multiplier or shape.head_dim**-0.5
    scores = (q @ k.transpose(-1, -2)) * scale
    if (cap := shape.attn_logit_softcapping) is not None:
        scores = cap * torch.tanh(scores / cap)
    hidden = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    if (window := shape.window(layer)) is not None:
        hidden |= torch.ones(seq, seq, dtype=torch.bool).tril(-window)
    mixed = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
    mixed = mixed.transpose(1, 2)  # (batch, seq, heads, head_dim)
    return linear(full, f"{at}.o_proj", mixed.reshape(batch, seq, -1))


def head_gates(full: Tensors, at: str, x: Tensor) -> Tensor:
    """x: (batch, seq, hidden) -> (batch, seq, heads)."""
    weight = full[f"{at}.weight"]
    return 2 * torch.sigmoid(x[..., : weight.shape[1]] @ weight.T)


def rotated(shape: ModelShape, layer: int, x: Tensor) -> Tensor:
    """x: (..., seq, head_dim), its first channels rotated by positions 0, 1, ..."""
    theta, scaling = shape.rope_theta, shape.rope_scaling
    if shape.sliding_rope_theta is not None and shape.window(layer) is not None:
        theta, scaling = shape.sliding_rope_theta, UNSCALED
    half, factor = shape.rotary_dim // 2, attention_factor(scaling)
    angle = torch.outer(torch.arange(x.shape[-2]).double(), frequencies(theta, half, scaling))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = factor * angle.cos(), factor * angle.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def frequencies(theta: float, half: int, scaling: RopeScaling) -> Tensor:
    """Radians a position; the scaled ones are tested against transformers in `test_rope`."""
    if scaling.rope_type == "default":
        return theta ** -(torch.arange(half, dtype=torch.float64) / half)
    return rope_frequencies(2 * half, theta, scaling).double()


def norm(shape: ModelShape, full: Tensors, at: str, x: Tensor, rms: bool = False) -> Tensor:
    """The norm of the model, or an RMS norm; without parameters where there are none."""
    if shape.norm == "layernorm" and not rms:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt()
    x = x * (full.get(f"{at}.weight", 1.0) + shape.norm_weight_offset)
    return x + full.get(f"{at}.bias", 0.0)


def linear(full: Tensors, at: str, x: Tensor) -> Tensor:
    """x @ weight.T + bias."""
    return x @ full[f"{at}.weight"].T + full.get(f"{at}.bias", 0.0)
