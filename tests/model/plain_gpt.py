"""The GPT written out in plain PyTorch, from the full tensors: every setting, nothing fused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmkit.config.shape import ModelShape

Tensors = Mapping[str, Tensor]


def full_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Name -> full tensor in float64 with a gradient of its own, of a model on one rank."""
    weights, full = dict(model.named_parameters()), {}
    for name, parts in model.parameter_slices().items():
        for part in parts:
            full[part.name] = weights[name].detach()[part.start : part.stop].double().requires_grad_()
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
        mixed = attention(
            shape, full, f"{at}.attention", norm(shape, full, f"{at}.attention_norm", x), tokens
        )
        x = x + shape.residual_multiplier * mixed
        y = norm(shape, full, f"{at}.mlp_norm", x)
        up = linear(full, f"{at}.mlp.up_proj", y)
        if shape.mlp == "swiglu":
            gate = linear(full, f"{at}.mlp.gate_proj", y)
            inner = gate * torch.sigmoid(gate) * up
        elif shape.mlp == "relu2":
            inner = up.clamp(min=0.0) ** 2
        else:
            inner = 0.5 * up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
        x = x + shape.residual_multiplier * linear(full, f"{at}.mlp.down_proj", inner)
    return norm(shape, full, "norm", x)


def logits(shape: ModelShape, full: Tensors, tokens: Tensor) -> Tensor:
    """tokens: (batch, seq) -> (batch, seq, vocab)."""
    matrix = full["embedding.weight" if shape.tie_word_embeddings else "head.weight"]
    found = hidden(shape, full, tokens) @ matrix.T / shape.logits_scaling
    cap = shape.final_logit_softcapping
    return found if cap is None else cap * torch.tanh(found / cap)


def attention(shape: ModelShape, full: Tensors, at: str, x: Tensor, tokens: Tensor) -> Tensor:
    """x: (batch, seq, hidden), the output of the norm -> what is added to the residual stream."""
    batch, seq, _ = x.shape
    q, k, v = (
        linear(full, f"{at}.{each}_proj", x).view(batch, seq, -1, shape.head_dim).transpose(1, 2)
        for each in "qkv"
    )  # (batch, heads, seq, head_dim)
    if f"{at}.value_embedding.weight" in full:
        gate = head_gates(full, f"{at}.value_embedding.gate", x)
        table = full[f"{at}.value_embedding.weight"][tokens].view(batch, seq, -1, shape.head_dim)
        v = v + (gate[..., None] * table).transpose(1, 2)
    if shape.key_shift:
        half = shape.head_dim // 2
        slow = torch.arange(shape.head_dim) % half >= half - round(shape.key_shift * half)
        k = torch.where(slow, torch.nn.functional.pad(k[:, :, :-1], (0, 0, 1, 0)), k)
    if shape.qk_norm:
        q, k = norm(shape, full, f"{at}.q_norm", q, rms=True), norm(shape, full, f"{at}.k_norm", k, rms=True)
    if shape.position_embedding == "rope":
        q, k = rotated(shape, q), rotated(shape, k)
    groups = shape.num_attention_heads // shape.num_key_value_heads
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scale = shape.attention_multiplier or shape.head_dim**-0.5
    scores = (q @ k.transpose(-1, -2)) * scale
    future = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    mixed = mixed.transpose(1, 2)  # (batch, seq, heads, head_dim)
    return linear(full, f"{at}.o_proj", mixed.reshape(batch, seq, -1))


def head_gates(full: Tensors, at: str, x: Tensor) -> Tensor:
    """x: (batch, seq, hidden) -> (batch, seq, heads)."""
    weight = full[f"{at}.weight"]
    return 2 * torch.sigmoid(x[..., : weight.shape[1]] @ weight.T)


def rotated(shape: ModelShape, x: Tensor) -> Tensor:
    """x: (..., seq, head_dim), rotated by positions 0, 1, ..."""
    half = shape.head_dim // 2
    frequency = shape.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequency)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1
    )


def norm(shape: ModelShape, full: Tensors, at: str, x: Tensor, rms: bool = False) -> Tensor:
    """The norm of the model, or an RMS norm; without parameters where there are none."""
    if shape.norm == "layernorm" and not rms:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + shape.norm_eps).sqrt()
    x = x * full.get(f"{at}.weight", 1.0)
    return x + full.get(f"{at}.bias", 0.0)


def linear(full: Tensors, at: str, x: Tensor) -> Tensor:
    """x @ weight.T + bias."""
    return x @ full[f"{at}.weight"].T + full.get(f"{at}.bias", 0.0)
