"""Times single operations of a step: products, attention, the loss, the update, sums of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from llmkit.calibration.turns import seconds_in_turns
from llmkit.estimate.calibration import CpuRates
from llmkit.kernels.linear_products import PRODUCTS
from llmkit.kernels.operators import COMPILE_PARTS, Operators

TOKENS, WIDTHS = (256, 1024), (64, 256, 1024)
HEAD_SIZES, LENGTHS = (64, 128), (128, 512, 1024)
HEADS = 4
LOGITS = (512, 4096)
PARAMETERS = 2**22
Work = Callable[[], object]


@dataclass(frozen=True)
class How:
    """forms: of the operators, as a plan has them. compiled: whether head and loss are."""

    operators: Operators
    dtype: torch.dtype
    compiled: bool


def measured_rates(how: How) -> CpuRates:
    """Rates without those of pointwise operations, which whole steps tell."""
    products = tuple(product_rows(how))
    attentions = tuple(attention_rows(how))
    none = CpuRates(products, attentions, 0.0, 0.0, 0.0, 0.0, 0.0)
    return CpuRates(products, attentions, _logit(how, none), *_parameter_and_gradient(how), 0.0, 0.0)


def product_rows(how: How) -> list[tuple[float, ...]]:
    """See `CpuRates.products`."""
    works: dict[str, Work] = {}
    grid = list(product(TOKENS, WIDTHS, WIDTHS))
    for tokens, outputs, inputs in grid:
        for name, work in _linear(how, tokens, outputs, inputs).items():
            works[f"{tokens} {outputs} {inputs} {name}"] = work
    found = seconds_in_turns(works)
    kinds = ("forward", "of_inputs", "of_weights")
    return [(t, o, i, *(found[f"{t} {o} {i} {kind}"] for kind in kinds)) for t, o, i in grid]


def _linear(how: How, tokens: int, outputs: int, inputs: int) -> Mapping[str, Work]:
    products = PRODUCTS[how.operators.forms["linear"]]
    x, weight, gradient = (
        torch.randn(size, dtype=how.dtype)
        for size in ((tokens, inputs), (outputs, inputs), (tokens, outputs))
    )
    with torch.no_grad():
        kept = products.output(x, weight, None)[1]
        for_x, for_weight = products.operands(gradient, kept, True, True)
    return {
        "forward": torch.no_grad()(lambda: products.output(x, weight, None)),
        "of_inputs": torch.no_grad()(lambda: products.of_x(for_x, how.dtype)),
        "of_weights": torch.no_grad()(lambda: products.of_weight(for_weight, how.dtype)),
    }


def attention_rows(how: How) -> list[tuple[float, ...]]:
    """See `CpuRates.attentions`."""
    works: dict[str, Work] = {}
    flops = {}
    for size, length in product(HEAD_SIZES, LENGTHS):
        batch = max(LENGTHS) // length
        shape = (batch, length, HEADS, size)
        flops[size, length] = 4.0 * batch * HEADS * size * length * (length + 1) / 2
        q, k, v, gradient = (torch.randn(shape, dtype=how.dtype, requires_grad=n < 3) for n in range(4))
        works[f"{size} {length} forward"] = _attend(how, q.detach(), k.detach(), v.detach(), None)
        works[f"{size} {length} both"] = _attend(how, q, k, v, gradient)
    found = seconds_in_turns(works)
    rows: list[tuple[float, ...]] = []
    for (size, length), count in flops.items():
        forward, both = (found[f"{size} {length} {kind}"] for kind in ("forward", "both"))
        rows.append((size, length, forward / count, max(0.0, both - forward) / (2.5 * count)))
    return rows


def _attend(how: How, q: Tensor, k: Tensor, v: Tensor, gradient: Tensor | None) -> Work:
    def forward() -> object:
        return how.operators.attention(q, k, v)

    def both() -> object:
        return torch.autograd.grad(how.operators.attention(q, k, v), (q, k, v), gradient)

    return forward if gradient is None else both


def _logit(how: How, rates: CpuRates) -> float:
    """Seconds of the loss and its gradient for each logit, without the products of the head."""
    tokens, columns = LOGITS
    width = WIDTHS[0]
    hidden = torch.randn(1, tokens, width, dtype=how.dtype, requires_grad=True)
    weight = torch.randn(columns, width, dtype=how.dtype, requires_grad=True)
    labels = torch.randint(0, columns, (1, tokens))
    form = how.operators.forms["head_loss"]
    loss = how.operators.head_loss
    if how.compiled and form not in COMPILE_PARTS:
        loss = torch.compile(loss, dynamic=False)

    def both() -> object:
        sums = loss(hidden, weight, labels, columns, compiled=how.compiled)
        return torch.autograd.grad(sums.nats.sum(), (hidden, weight))

    seconds = seconds_in_turns({"loss": both})["loss"] - sum(rates.linear(tokens, columns, width, ""))
    return max(0.0, seconds) / (tokens * columns)


def _parameter_and_gradient(how: How) -> tuple[float, float]:
    """Seconds of gradient norm and AdamW for each parameter, and of adding up its gradient."""
    master, more = torch.randn(PARAMETERS, requires_grad=True), torch.randn(PARAMETERS, dtype=how.dtype)
    master.grad = torch.randn(PARAMETERS)
    group = {"params": [master], "weight_decay": 0.1}
    optimizer = how.operators.adamw([group], lr=1e-4, betas=(0.9, 0.95), eps=1e-8)
    weight = torch.empty(PARAMETERS, dtype=how.dtype)

    def update() -> None:
        how.operators.sum_of_squares([master.grad], torch.device("cpu"))
        optimizer.step()
        if how.dtype != torch.float32:
            weight.copy_(master.detach())

    def add() -> None:
        assert master.grad is not None
        master.grad.add_(more)

    found = seconds_in_turns({"update": update, "add": add})
    return found["update"] / PARAMETERS, found["add"] / PARAMETERS
