"""Fused attention with a backend put first: the same values, compiled too, and nothing stays set."""

from __future__ import annotations

import operator
import os
import sys

import pytest
import torch
import torch._dynamo
import torch._inductor.config as inductor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import codecache
from torch.nn.attention import _cur_sdpa_kernel_backends

from llmkit.errors import UserError
from llmkit.kernels import attention_backends
from llmkit.kernels.attention_backends import ORDERS, serves
from llmkit.kernels.compile_cache import VARIABLE, use_compile_cache
from llmkit.kernels.compiler import compiler_missing
from llmkit.kernels.operators import Operators
from tests.kernels.dense_attention import dense, documents_of, tensors
from tests.kernels.float64 import check

NO_COMPILER = compiler_missing(torch.device("cpu"))
DOCUMENTS = documents_of([[13, 1, 23], [37]])


@pytest.mark.parametrize("form", ORDERS)
def test_equals_the_reference_and_leaves_the_order_as_it_was(form):
    attend = Operators.of({"attention": form}).attention
    before = _cur_sdpa_kernel_backends(with_priority=True)
    for how in ({}, {"window": 5}, {"documents": DOCUMENTS}, {"softcap": 3.0, "scale": 0.3}):
        check(
            lambda q, k, v, how=how: attend(q, k, v, **how),
            lambda q, k, v, how=how: dense(q, k, v, **how),
            tensors((2, 37, 37), (6, 2), 16, torch.float32),
        )
    check(attend, dense, tensors((2, 1, 37), (6, 2), 16, torch.float32))
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


def kernels_of(form: str) -> list[str]:
    """The fused kernels that the compiled code of a form calls, forward and backward."""
    called = []

    def look(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes if "attention" in str(node.target))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    attend = getattr(attention_backends, form)
    compiled = torch.compile(lambda q, k, v: attend(q, k, v) * 2, backend=aot_autograd(fw_compiler=look))
    q, k, v = tensors((1, 64, 64), (2, 2), 16, torch.float32)
    compiled(q, k, v).sum().backward()
    return called


def test_compiled_code_calls_the_kernel_that_was_put_first():
    """On a CPU there are flash attention and, for what it does not get, plain products."""
    flash = "aten._scaled_dot_product_flash_attention_for_cpu"
    assert kernels_of("flash") == [f"{flash}.default", f"{flash}_backward.default"]
    assert kernels_of("efficient") == []


PACKAGES = {
    "flash3": (
        "flash_attn_interface.py",
        "from torch.library import Library\n"
        "ours = Library('flash_attn_3', 'DEF')\n"
        "ours.define('fwd(Tensor q) -> Tensor')\n"
        "ours.define('bwd(Tensor q) -> Tensor')\n",
    ),
    "flash4": ("flash_attn/cute/interface.py", "_flash_attn_fwd = _flash_attn_bwd = print\n"),
}
"""What PyTorch looks for in the packages of flash attention."""


def replaced() -> list[bool]:
    """Whether the forward and the backward pass have a kernel for a GPU, which none has on a CPU."""
    name = "aten::_scaled_dot_product_flash_attention"
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [has(each, "CUDA") for each in (name, f"{name}_backward")]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages of flash attention that can be imported, for the time of a test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for file, content in PACKAGES.values():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    before = set(sys.modules)
    yield
    attention_backends.prepare("flash")
    for name in set(sys.modules) - before:
        if name.startswith("flash_attn"):
            del sys.modules[name]


@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch has kernels of its own for a GPU")
def test_flash_attention_of_a_package_is_in_place_until_another_form_is_chosen(packages):
    current = torch.nn.attention.current_flash_attention_impl
    for form, name in (("flash3", "FA3"), ("flash4", "FA4"), ("flash4", "FA4"), ("flash3", "FA3")):
        assert Operators.of({"attention": form}).attention is attention_backends.flash
        assert (current(), replaced()) == (name, [True, True])
        Operators.of({"attention": "sdpa"})
        assert current() == name
    Operators.of({"attention": "flash"})
    assert (current(), replaced()) == (None, [False, False])
    q, k, v = tensors((1, 8, 8), (2, 2), 8, torch.float32)
    Operators.of({"attention": "flash"}).attention(q, k, v)


def test_a_package_that_cannot_be_used_is_named(monkeypatch):
    def activate(name: str) -> None:
        raise AttributeError(f"{name} is of another version")

    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activate)
    with pytest.raises(UserError, match="attention flash4: PyTorch cannot use the package flash_attn "):
        attention_backends.prepare("flash4")


def test_a_backend_serves_what_this_pytorch_says(monkeypatch):
    q, k, v = tensors((1, 64, 64), (4, 2), 16, torch.bfloat16)
    assert not any(serves(form, q, k, v, 0.0) for form in ORDERS), "none of a GPU's on a CPU"
    asked = {}
    for form, name in (("cudnn", "cudnn"), ("flash", "flash"), ("efficient", "efficient")):
        monkeypatch.setattr(
            torch.backends.cuda, f"can_use_{name}_attention",
            lambda params, form=form: asked.setdefault(form, params) is params,
        )  # fmt: skip
    assert all(serves(form, q, k, v, 0.1) for form in ORDERS)
    for params in asked.values():
        assert params.query.shape == (1, 4, 64, 16)
        assert params.key.shape == (1, 2, 64, 16)
        assert (params.dropout, params.is_causal, params.enable_gqa) == (0.1, True, True)


@pytest.mark.skipif(NO_COMPILER is not None, reason=str(NO_COMPILER))
def test_compiled_code_is_kept_for_each_form(tmp_path, monkeypatch):
    """What names the backends is in the key of the cache, and does not keep the graph out of it."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, getattr(codecache, name))
    names = ("compile_threads", "cpp.vec_isa_ok", "unsafe_marked_cacheable_functions")
    before = {name: operator.attrgetter(name)(inductor) for name in names}
    with inductor.patch({**before, "cpp_cache_precompile_headers": False}):
        inductor.unsafe_marked_cacheable_functions = {}
        use_compile_cache(os.environ, 1, pytest.fail)
        found = [start(form) for form in ("flash", "efficient", "flash", "efficient")]
    assert found == [(0, 1, 0), (0, 1, 0), (1, 0, 0), (1, 0, 0)]


def start(form: str) -> tuple[int, ...]:
    """Hits, misses and bypasses of the cache in a process's first use of a form."""
    torch._dynamo.reset()
    torch._inductor.utils.clear_caches()
    counters = torch._dynamo.utils.counters
    counters.clear()
    attend = getattr(attention_backends, form)
    q, k, v = tensors((1, 64, 64), (2, 2), 16, torch.float32)
    found = torch.compile(lambda q, k, v: attend(q, k, v) * 2, fullgraph=True, dynamic=False)(q, k, v)
    found.sum().backward()
    torch.testing.assert_close(found, dense(q, k, v) * 2, rtol=1e-5, atol=1e-5)
    return tuple(counters["aot_autograd"][f"autograd_cache_{name}"] for name in ("hit", "miss", "bypass"))
