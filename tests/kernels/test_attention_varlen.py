"""Documents laid end to end against all pairs at once in float64; what the kernel of a GPU is asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from llmkit.batch import Batch, document_bounds
from llmkit.kernels import attention_varlen
from llmkit.kernels.attention_varlen import kernel_parameters, varlen
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from tests.kernels.dense_attention import dense, documents_of, tensors
from tests.kernels.float64 import check
from tests.shapes import LLAMA_STYLE

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


@pytest.mark.parametrize("how", ["none", "selective"])
def test_compiled_blocks_take_any_number_of_documents(how):
    """As on a GPU, with tensors that have no values. Selective recomputation runs the kernel once, too."""
    from functorch.compile import min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.utils import counters

    kernels = []

    def count(graph, _):
        kernels.extend(node.target._name for node in graph.graph.nodes if "varlen" in str(node.target))
        return graph

    backend = aot_autograd(
        fw_compiler=count, bw_compiler=count, partition_fn=min_cut_rematerialization_partition
    )
    torch._dynamo.reset()
    counters.clear()
    shape = replace(LLAMA_STYLE, head_dim=16, num_hidden_layers=2, sliding_window=30)
    with torch.device("meta"):
        model = GPT(shape, Operators.of({"attention": "varlen"}), activation_checkpointing=how).bfloat16()
    model.has_weights = True
    model.compile_parts(pytest.fail, backend)
    for size in (16, 32, 64):
        with torch.device("meta"):
            tokens = torch.empty(2, 40, dtype=torch.int64)
            documents, bounds = torch.empty(2, 40, dtype=torch.int32), torch.empty(size, dtype=torch.int32)
        model(Batch(tokens, tokens, documents, bounds)).objective.backward()
    assert kernels == ["torch_attn::_varlen_attn", "torch_attn::_varlen_attn_backward"]
    assert not counters["graph_break"]
