"""The forms of attention, forward and both directions, with and without documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.measure import compare, release
from benchmarks.on_gpu.operations import forms_on
from benchmarks.on_gpu.report import Row
from benchmarks.on_gpu.roofline import attention_seconds
from benchmarks.on_gpu.setting import Setting
from llmkit.batch import Rows
from llmkit.config.operators import FLASH_PACKAGES
from llmkit.kernels.attention_backends import ORDERS, prepare
from llmkit.kernels.operators import Operators

NOTES = (
    "q, k and v in the precision of the title, causal; microseconds of a call, median (least to most). "
    "TFLOP/s counts the half of the scores that is not masked, 2.5 times as much backward; with documents "
    "it counts the same, as if there were none. Peak: MiB above what is held before a forward and a "
    "backward pass. Predicted: see benchmarks/on_gpu/roofline.py.",
    "SDPA's kernels by name, each forced; llmkit's forms as its table of operators calls them.",
)


class Case(NamedTuple):
    """Sizes of a call. documents: in a row, of about equal length; 0 = no document masks."""

    rows: int
    length: int
    heads: int
    key_heads: int
    head_dim: int
    documents: int = 0


CASES = (
    Case(16, 1024, 12, 12, 64),
    Case(8, 2048, 32, 8, 64),
    Case(2, 8192, 32, 8, 64),
    Case(4, 2048, 24, 8, 128),
    Case(1, 8192, 24, 8, 128),
    Case(8, 2048, 32, 8, 64, documents=4),
    Case(2, 8192, 32, 8, 64, documents=14),
    Case(1, 8192, 24, 8, 128, documents=14),
)
TOY = (Case(2, 32, 4, 2, 8), Case(2, 32, 4, 2, 8, documents=3))
SDPA = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def measure(setting: Setting) -> Iterator[Row]:
    """A table a case, forward alone and both directions."""
    for case in TOY if setting.toy else CASES:
        if setting.in_time:
            yield from _rows(case, setting)
            release(setting.device)


def _rows(case: Case, setting: Setting) -> Iterator[Row]:
    title = f"{case.rows} rows of {case.length}, {case.heads} heads ({case.key_heads}) of {case.head_dim}"
    if case.documents:
        title += f", {case.documents} documents a row"
    setting.note(title)
    inputs = [
        torch.randn(
            case.rows, case.length, heads, case.head_dim, device=setting.device, dtype=setting.dtype
        ).requires_grad_()
        for heads in (case.heads, case.key_heads, case.key_heads)
    ]
    calls = forms(case, setting)
    with torch.no_grad():
        forward = compare(
            {name: partial(call, *inputs) for name, call in calls.items()}, setting.device, setting.rounds
        )
    both = compare(
        {name: partial(_both_ways, call, inputs) for name, call in calls.items() if not forward[name].failed},
        setting.device,
        setting.rounds,
    )
    flops = 2 * case.length * case.heads * case.head_dim * case.rows * case.length
    for name in calls:
        cells = {"form": name, "forward us": forward[name].show()}
        if name in both:
            cells["both us"] = both[name].show()
            cells["peak MiB"] = f"{both[name].peak / 2**20:.1f}" if both[name].peak else "-"
            if both[name].failed is None:
                cells["forward TFLOP/s"] = f"{flops / forward[name].median / 1e12:.3g}"
                cells["both TFLOP/s"] = f"{3.5 * flops / both[name].median / 1e12:.3g}"
        if setting.rates is not None:
            sizes = (case.rows * case.length, case.heads, case.head_dim, case.length)
            once, back = attention_seconds(*sizes, setting.rates)
            cells["predicted us"] = f"{1e6 * once:,.0f} and {1e6 * (once + back):,.0f}"
        yield Row(title, cells)


def _both_ways(call: Callable[..., Tensor], inputs: list[Tensor]) -> Any:
    output = call(*inputs)
    return torch.autograd.grad(output, inputs, output.detach())


def forms(case: Case, setting: Setting) -> dict[str, Callable[..., Tensor]]:
    """Name -> attention of q, k and v as (rows, length, heads, head_dim)."""
    calls: dict[str, Callable[..., Tensor]] = {}
    if not case.documents:
        calls |= {f"SDPA {name}": partial(_sdpa, name) for name in SDPA}
    options = documents_of(case, setting.device)
    for form in forms_on(setting.device, "attention"):
        if form in ORDERS or (case.documents and form in FLASH_PACKAGES):  # SDPA's kernels above, or none
            continue
        calls[f"llmkit {form}"] = partial(_ours, form, options)
    return calls


def _sdpa(kernel: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention in one of its kernels; raises where that does not take these tensors."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    prepare("flash")
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    with sdpa_kernel(getattr(SDPBackend, kernel)):
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)


def _ours(form: str, options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    prepare(form if form in FLASH_PACKAGES else "flash")
    return Operators.of({"attention": form}).attention(q, k, v, **options)


def documents_of(case: Case, device: torch.device) -> dict[str, Any]:
    """The options of a call that mask documents from each other, as a batch brings them."""
    if not case.documents:
        return {}
    tokens = torch.zeros(case.rows, case.length + 1, dtype=torch.int32)
    for number in range(1, case.documents):
        tokens[:, number * case.length // case.documents] = 1
    batch = Rows.of(tokens, None, 1).to(device)
    return {"documents": batch.documents, "bounds": batch.bounds}
