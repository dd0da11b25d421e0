"""The operators of llmkit's table as calls on tensors, and the same from libraries, to be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.batch import IGNORE
from llmkit.kernels.operators import FORMS
from llmkit.model.rope import rope_tables

Function = Callable[..., Any]
EPS, DROPPED = 1e-5, 0.1


@dataclass(frozen=True)
class Operation:
    """A call of one function of an operator.

    name: of the row. operator, function: of the table. inputs: tensors that get a gradient. call: calls a
    form of the function on the inputs; gives the outputs. moved: bytes of inputs, outputs and their
    gradients, each once. others: the same by libraries, on the inputs.
    """

    name: str
    operator: str
    function: str
    inputs: Mapping[str, Tensor]
    call: Callable[[Function, Mapping[str, Tensor]], tuple[Tensor, ...]]
    moved: int
    others: Mapping[str, Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]] = field(default_factory=dict)


def forms_on(device: torch.device, operator: str) -> list[str]:
    """The forms of an operator, without those that are kernels of a CPU where it is none."""
    forms = FORMS[operator].items()
    return [form for form, module in forms if device.type == "cpu" or ".kernels.cpu." not in module]


Draw = Callable[..., Tensor]
"""A random tensor of a size, on the device and in the type of the measurement."""


def linear(draw: Draw, tokens: int, outputs: int, inputs: int) -> list[Operation]:
    """A linear layer; its products are bound by arithmetic, so that the bytes are no bound."""
    x, weight = draw(tokens, inputs), draw(outputs, inputs)
    return [
        Operation(
            f"linear, {tokens} x {outputs} x {inputs}", "linear", "linear", {"x": x, "weight": weight},
            lambda f, i: (f(i["x"], i["weight"]),), 2 * (x.nbytes + weight.nbytes) + 2 * tokens * outputs * 2,
        )
    ]  # fmt: skip


def norms(draw: Draw, tokens: int, width: int) -> list[Operation]:
    """RMSNorm and LayerNorm, alone and with the sum before them."""
    x, branch, weight, bias = draw(tokens, width), draw(tokens, width), draw(width), draw(width)
    size = x.nbytes

    def liger_add(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        normed, total = _liger().liger_fused_add_rms_norm(
            inputs["branch"], inputs["x"], inputs["weight"], EPS
        )
        return total, normed

    return [
        Operation(
            f"rms_norm, {width}", "norm", "rms_norm", {"x": x, "weight": weight},
            lambda f, i: (f(i["x"], i["weight"], EPS),), 5 * size,
            {
                "F.rms_norm": lambda i: (F.rms_norm(i["x"], (width,), i["weight"], EPS),),
                "Liger": lambda i: (_liger().liger_rms_norm(i["x"], i["weight"], EPS),),
            },
        ),
        Operation(
            f"add_rms_norm, {width}", "norm", "add_rms_norm", {"x": x, "branch": branch, "weight": weight},
            lambda f, i: f(i["x"], i["branch"], i["weight"], EPS), 8 * size,
            {"Liger": liger_add},
        ),
        Operation(
            f"layer_norm, {width}", "norm", "layer_norm", {"x": x, "weight": weight, "bias": bias},
            lambda f, i: (f(i["x"], i["weight"], i["bias"], EPS),), 5 * size,
            {"Liger": lambda i: (_liger().liger_layer_norm(i["x"], i["weight"], i["bias"], EPS),)},
        ),
        Operation(
            f"add_layer_norm, {width}", "norm", "add_layer_norm",
            {"x": x, "branch": branch, "weight": weight, "bias": bias},
            lambda f, i: f(i["x"], i["branch"], i["weight"], i["bias"], EPS), 8 * size,
        ),
    ]  # fmt: skip


def rotation(
    draw: Draw, rows: int, length: int, heads: int, key_heads: int, head_dim: int
) -> list[Operation]:
    """The rotation of queries and keys."""
    q, k = draw(rows, length, heads, head_dim), draw(rows, length, key_heads, head_dim)
    with torch.device(q.device):
        cos, sin = rope_tables(length, head_dim, 1e4)
    whole = [torch.cat((each, each), -1)[None].to(q.dtype) for each in (cos, sin)]

    def liger(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        q, k = _liger().liger_rope(inputs["q"].transpose(1, 2), inputs["k"].transpose(1, 2), *whole)
        return q.transpose(1, 2), k.transpose(1, 2)

    return [
        Operation(
            f"rotate, {heads} and {key_heads} heads of {head_dim}", "rotation", "rotate", {"q": q, "k": k},
            lambda f, i: f(i["q"], i["k"], cos, sin), 4 * (q.nbytes + k.nbytes), {"Liger": liger},
        )
    ]  # fmt: skip


def pointwise(draw: Draw, tokens: int, width: int, inner: int) -> list[Operation]:
    """Activations of the MLP, and dropout of a branch."""
    gate, up, x, branch = draw(tokens, inner), draw(tokens, inner), draw(tokens, width), draw(tokens, width)
    bias, key = draw(inner), torch.tensor(7, device=x.device)
    return [
        Operation(
            f"swiglu, {inner}", "activation", "swiglu", {"gate": gate, "up": up},
            lambda f, i: (f(i["gate"], i["up"]),), 8 * gate.nbytes,
            {"Liger": lambda i: (_liger().liger_swiglu(i["gate"], i["up"]),)},
        ),
        Operation(
            f"geglu, {inner}", "activation", "geglu", {"gate": gate, "up": up},
            lambda f, i: (f(i["gate"], i["up"]),), 8 * gate.nbytes,
            {"Liger": lambda i: (_liger().liger_geglu(i["gate"], i["up"]),)},
        ),
        Operation(
            f"gelu with bias, {inner}", "activation", "gelu", {"x": gate, "bias": bias},
            lambda f, i: (f(i["x"], i["bias"]),), 5 * gate.nbytes,
        ),
        Operation(
            f"dropout_add, {width}", "dropout_add", "dropout_add", {"branch": branch, "x": x},
            lambda f, i: (f(i["branch"], i["x"], DROPPED, key),), 6 * x.nbytes,
        ),
    ]  # fmt: skip


def head_loss(draw: Draw, rows: int, length: int, width: int, vocabulary: int) -> list[Operation]:
    """The output head and the loss."""
    # Logits as large as those of a model: of large ones bf16 leaves little.
    hidden, weight = draw(rows, length, width), draw(vocabulary, width) * width**-0.5
    labels = torch.randint(vocabulary, (rows, length), device=hidden.device)
    labels[:, -1] = IGNORE

    def flat(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return inputs["hidden"].flatten(0, 1), inputs["weight"], labels.flatten()

    def compiled_chunks(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        hidden, weight, targets = flat(inputs)
        parts = zip(hidden.chunk(8), targets.chunk(8), strict=True)
        return (torch.stack([_compiled_cross_entropy(h, weight, t) for h, t in parts]).sum(),)

    def liger(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        hidden, weight, targets = flat(inputs)
        found = _liger().liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="sum")
        return (found[0] if isinstance(found, tuple) else found,)

    def cut(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        from cut_cross_entropy import linear_cross_entropy

        return (linear_cross_entropy(*flat(inputs), reduction="sum"),)

    return [
        Operation(
            f"head_loss, {rows * length} tokens, {width} x {vocabulary}", "head_loss", "head_loss",
            {"hidden": hidden, "weight": weight},
            lambda f, i: (f(i["hidden"], i["weight"], labels, vocabulary).nats.sum(),),
            2 * (hidden.nbytes + weight.nbytes),
            {
                "torch.compile, 8 chunks": compiled_chunks, "Liger": liger, "cut-cross-entropy": cut,
                "F.linear_cross_entropy": lambda i: (F.linear_cross_entropy(*flat(i), reduction="sum"),),
            },
        )
    ]  # fmt: skip


@torch.compile(dynamic=False)
def _compiled_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def _liger() -> Any:
    """Liger's functions. Raises ImportError where it is not installed."""
    from liger_kernel.transformers import functional

    return functional
