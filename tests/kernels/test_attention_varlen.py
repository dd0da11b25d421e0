"""Documents laid end to end against all pairs at once in float64; what the kernel of a GPU is asked for."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from llmkit.batch import document_bounds
from llmkit.kernels import attention_varlen
from llmkit.kernels.attention_varlen import kernel_parameters, varlen
from tests.kernels.dense_attention import dense, documents_of, tensors
from tests.kernels.float64 import check

LENGTHS = [[150], [1, 63, 1, 85]]


def bounds_of(documents: torch.Tensor) -> torch.Tensor:
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return document_bounds(begins)


@pytest.mark.parametrize(
    ("queries", "options"),
    [
        (150, {}),
        (150, {"window": 2}),
        (150, {"scale": 0.3}),
        (150, {"softcap": 1.5}),
        (20, {}),
        (150, {"bounds": None}),
    ],
)
def test_documents_one_by_one_equal_all_pairs(queries, options):
    documents = documents_of(LENGTHS)
    given = {"documents": documents, "bounds": bounds_of(documents), **options}
    wanted = {"documents": documents, **options}
    wanted.pop("bounds", None)
    inputs = tensors((2, queries, 150), (6, 2), 12, torch.float32)
    check(partial(varlen, **given), partial(dense, **wanted), inputs)


class Asked:
    """Stands for the kernel: keeps what it is asked for."""

    def __init__(self, monkeypatch):
        from torch.nn.attention import varlen as module

        self.calls = []
        monkeypatch.setattr(module, "varlen_attn", self)

    def __call__(self, q, k, v, bounds, bounds_of_keys, longest, longest_keys, **options):
        assert bounds is bounds_of_keys and longest == longest_keys
        assert bounds.dtype == torch.int32 and all(each.ndim == 3 for each in (q, k, v))
        self.calls.append((tuple(q.shape), tuple(k.shape), bounds.shape[0], longest, options))
        return torch.empty_like(q)


@pytest.mark.parametrize(
    ("documents", "window", "bounds", "left"),
    [(True, None, 16, -1), (True, 40, 16, 39), (False, 40, 3, 39), (False, 1, 3, 0)],
)
def test_the_kernel_is_asked_for_causal_windows_of_documents(monkeypatch, documents, window, bounds, left):
    asked = Asked(monkeypatch)
    with torch.device("meta"):
        q, k = torch.empty(2, 150, 6, 16), torch.empty(2, 150, 2, 16)
        given = {}
        if documents:
            table = torch.empty(16, dtype=torch.int32)
            given = {"documents": torch.empty(2, 150, dtype=torch.int32), "bounds": table}
        assert varlen(q, k, k, window=window, **given).shape == q.shape
    options = {"scale": None, "window_size": (left, 0), "enable_gqa": True}
    assert asked.calls == [((300, 6, 16), (300, 2, 16), bounds, 150, options)]


def of_pytorch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """Its kernel's parameters."""


def test_older_versions_are_not_asked_for_what_they_do_not_know(monkeypatch):
    """2.11 takes groups without being asked; 2.10 has no windows."""
    from torch.nn.attention import varlen as module

    assert kernel_parameters() >= {"scale", "window_size", "enable_gqa"}
    monkeypatch.setattr(attention_varlen, "GROUPS", {})
    calls = Asked(monkeypatch).calls
    with torch.device("meta"):
        varlen(torch.empty(2, 150, 6, 16), *[torch.empty(2, 150, 2, 16)] * 2, window=40)
    assert calls[0][-1].keys() == {"scale", "window_size"}
    monkeypatch.setattr(module, "varlen_attn", of_pytorch_2_10)
    assert "window_size" not in kernel_parameters()


def test_another_number_of_documents_is_not_compiled_anew():
    """By the kernel's fake form on the meta device; blocks are compiled as `compile_module` does it."""
    from torch._dynamo.testing import CompileCounterWithBackend

    seen = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(varlen, dynamic=False, backend=seen, fullgraph=True)
    with torch.device("meta"):
        q = torch.empty(2, 64, 4, 16, dtype=torch.bfloat16, requires_grad=True)
        documents = torch.empty(2, 64, dtype=torch.int32)
        for size in (16, 32, 64):
            bounds = torch.empty(size, dtype=torch.int32)
            torch._dynamo.mark_dynamic(bounds, 0)
            compiled(q, q, q, documents=documents, bounds=bounds).sum().backward()
    assert seen.frame_count == 1
    assert q.grad is not None and q.grad.shape == q.shape
