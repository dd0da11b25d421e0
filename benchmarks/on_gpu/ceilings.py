"""What the GPU reaches in products of our sizes and in copies, beside what the roofline assumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.on_gpu.measure import compare, release
from benchmarks.on_gpu.report import Row
from benchmarks.on_gpu.roofline import matrices, product_seconds
from benchmarks.on_gpu.setting import Setting
from benchmarks.workloads import make_workload

SHAPES = ("124m", "1558m", "llama-1b", "llama-3b")
NAMES = ("qkv", "out", "into MLP", "out of MLP", "head")
TOKENS, SQUARE, COPIED, PARAMETERS = 16_384, 8192, 2**30, 2**28
TOY_TOKENS, TOY_SQUARE, TOY_COPIED, TOY_PARAMETERS = 64, 96, 2**16, 2**10

NOTES = (
    "Products in the precision of the title: forward x w', and backward dy w and dy' x, TFLOP/s: median "
    "(least to most) of the rounds, in which the three take turns. Predicted: see "
    "benchmarks/on_gpu/roofline.py.",
    "Copy: bytes read and written a second. AdamW: PyTorch's fused update of fp32 parameters, 28 bytes each.",
)


def measure(setting: Setting) -> Iterator[Row]:
    """A row a shape of a product, then those of memory."""
    tokens = TOY_TOKENS if setting.toy else TOKENS
    square = TOY_SQUARE if setting.toy else SQUARE
    yield _product(setting, "square", square, square, square)
    for shape in ("toy",) if setting.toy else SHAPES:
        model = make_workload(shape, setting.device).shape
        sizes = [*matrices(model), (model.padded_vocab_size, model.hidden_size)]
        for name, (outputs, inputs) in zip(NAMES, sizes, strict=True):
            if setting.in_time:
                yield _product(setting, f"{shape} {name}", tokens, outputs, inputs)
                release(setting.device)
    yield from _memory(setting)


def _product(setting: Setting, name: str, tokens: int, outputs: int, inputs: int) -> Row:
    """x: (tokens, inputs), w: (outputs, inputs)."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, device=setting.device, dtype=setting.dtype)

    x, w, dy = draw(tokens, inputs), draw(outputs, inputs), draw(tokens, outputs)
    calls: dict[str, Callable[[], Any]] = {
        "x w'": lambda: x @ w.t(), "dy w": lambda: dy @ w, "dy' x": lambda: dy.t() @ x
    }  # fmt: skip
    figures = compare(calls, setting.device, setting.rounds)
    shapes = {
        "x w'": (tokens, outputs, inputs),
        "dy w": (tokens, inputs, outputs),
        "dy' x": (outputs, inputs, tokens),
    }
    flops = 2 * tokens * outputs * inputs
    cells = {"product": name, "tokens x outputs x inputs": f"{tokens} x {outputs} x {inputs}"}
    for each, figure in figures.items():
        cells[f"{each} TFLOP/s"] = figure.failed or _rates(flops, figure.seconds)
        if setting.rates is not None:
            cells[f"{each} predicted"] = f"{flops / product_seconds(*shapes[each], setting.rates) / 1e12:.0f}"
    return Row("Products", cells)


def _rates(work: float, seconds: list[float]) -> str:
    """Tera-units a second: median (least to most)."""
    rates = sorted(work / each / 1e12 for each in seconds)
    return f"{rates[len(rates) // 2]:.3g} ({rates[0]:.3g} to {rates[-1]:.3g})"


def _memory(setting: Setting) -> Iterator[Row]:
    size = TOY_COPIED if setting.toy else COPIED
    source = torch.ones(size // 4, device=setting.device)
    target, half = (
        torch.empty_like(source),
        torch.empty(size // 4, dtype=torch.bfloat16, device=setting.device),
    )
    count = TOY_PARAMETERS if setting.toy else PARAMETERS
    parameter = torch.nn.Parameter(torch.ones(count, device=setting.device))
    parameter.grad = torch.ones_like(parameter)
    adamw = torch.optim.AdamW([parameter], fused=True)
    work: dict[str, tuple[Callable[[], Any], float]] = {
        "copy fp32": (lambda: target.copy_(source), 2 * size),
        "fp32 to bf16": (lambda: half.copy_(source), 1.5 * size),
        "fp32 sum": (lambda: source.sum(), size),
        "AdamW": (adamw.step, 28 * count),
    }
    figures = compare({name: call for name, (call, _) in work.items()}, setting.device, setting.rounds)
    for name, figure in figures.items():
        cells = {"pass": name, "TB/s": figure.failed or _rates(work[name][1], figure.seconds)}
        if setting.rates is not None:
            cells["predicted"] = f"{setting.rates.bandwidth / 1e12:.1f}"
        yield Row("Memory", cells)
    release(setting.device)
