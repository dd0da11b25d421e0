"""Causal attention by the kernel for AVX-512 BF16 against blocks of queries in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmkit.kernels.attention_blocks import blocks
from llmkit.kernels.cpu.attention import _call, attention, causal_attention
from llmkit.monitor.hardware import has_avx512_bf16
from tests.kernels.float64 import check

pytestmark = pytest.mark.skipif(not has_avx512_bf16(), reason="needs a CPU with AVX-512 BF16")


def draw(batch: int, length: int, heads: int, kv_heads: int, width: int) -> list[Tensor]:
    """Queries, keys and values as views of one projection."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(batch, length, (heads + 2 * kv_heads) * width, generator=generator).bfloat16()
    parts = rows.split([heads * width, kv_heads * width, kv_heads * width], -1)
    return [part.unflatten(-1, (-1, width)).requires_grad_() for part in parts]


@pytest.mark.parametrize(
    "size",
    [(2, 70, 3, 1, 64), (1, 1, 2, 2, 10), (2, 131, 4, 2, 50), (1, 64, 1, 1, 2), (1, 401, 2, 1, 128)],
    ids=str,
)
def test_values_and_gradients(size: tuple[int, int, int, int, int]) -> None:
    check(attention, blocks, draw(*size), 6e-3)


def test_large_scores_and_a_scale_of_ones_own() -> None:
    q, k, v = (each.detach() for each in draw(1, 90, 2, 2, 32))
    exact = blocks((q * 30).double(), k.double(), v.double(), scale=0.5)
    torch.testing.assert_close(attention(q * 30, k, v, scale=0.5).double(), exact, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_so(which: int, value: float) -> None:
    tensors = [each.detach().clone() for each in draw(1, 80, 1, 1, 16)]
    tensors[which][0, 70, 0, 3] = value
    found = attention(*tensors)
    assert found[0, :64].isfinite().all()  # blocks of queries before it
    assert not found[0, 70].isfinite().all()


def test_what_the_kernel_does_not_know_is_computed_in_blocks() -> None:
    q, k, v = (each.detach() for each in draw(2, 30, 2, 1, 16))
    documents = (torch.arange(30) // 7).expand(2, -1)
    for options in ({"window": 5}, {"documents": documents}, {"softcap": 2.0}):
        assert torch.equal(attention(q, k, v, **options), blocks(q, k, v, **options))
    assert torch.equal(attention(q[:, -1:], k, v), blocks(q[:, -1:], k, v))
    assert attention(q.float(), k.float(), v.float()).dtype == torch.float32
    assert torch.equal(attention(q, k, v, window=30), attention(q, k, v))


def test_the_number_of_threads_changes_no_bit() -> None:
    q, k, v = draw(2, 150, 4, 2, 32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            output = attention(q, k, v)
            found.append((output, *torch.autograd.grad(output.sum(), (q, k, v))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_it_passes_through_a_graph() -> None:
    q, k, v = draw(2, 40, 2, 1, 16)
    torch.library.opcheck(causal_attention, (q, k, v, 0.25))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    found, wanted = (
        torch.autograd.grad(form(q, k, v).square().sum(), (q, k, v)) for form in (compiled, attention)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_too_little_memory_is_an_error_of_python() -> None:
    q = torch.zeros(64).bfloat16().expand(1, 2**40, 1, 64)
    for backward in (False, True):
        tensors = (q,) * (8 if backward else 4)
        with pytest.raises(MemoryError, match="buffers of the kernel attention; use a smaller"):
            _call(tensors, torch.zeros(1), 1.0, backward)
