"""The head and the loss without all logits, against float64: any weighting of rows, any term, any chunks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmkit.kernels import head_loss, head_loss_chunks
from llmkit.kernels.head_loss import LossTerms
from llmkit.kernels.head_loss_chunks import chunk_tokens
from tests.kernels.head_loss_cases import OBJECTIVES, TERMS, Case, check

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}


@pytest.fixture(params=["kept", "in chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two ways is taken; in chunks there are 13 in fp32 and 7 in bf16."""
    if request.param == "in chunks":
        monkeypatch.setattr(head_loss_chunks, "BUFFER_BYTES", 0)
    return request.param


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(way, dtype, terms, objective):
    for rows in (37, 48):  # without and with padding
        case = Case.of(dtype, rows=rows)
        check(head_loss_chunks.head_loss, case, terms, objective, TOLERANCE[dtype])
        check(head_loss.head_loss, case, terms, objective, TOLERANCE[dtype])


@pytest.fixture
def no_second_pass(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing the gradients anew is an error, and so is looking at a gradient's values."""

    def refuse(*_: object) -> bool:
        raise AssertionError("looked at values, or computed gradients anew")

    monkeypatch.setattr(head_loss_chunks, "_unit_weights", _once(head_loss_chunks._unit_weights))
    monkeypatch.setattr(torch, "equal", refuse)
    monkeypatch.setattr(Tensor, "is_cpu", False)


def _once(function):
    calls = []

    def call(*arguments):
        calls.append(arguments)
        assert len(calls) == 1, "gradients are computed anew"
        return function(*arguments)

    return call


@pytest.mark.parametrize("terms", [TERMS["plain"], TERMS["all"]], ids=["plain", "all"])
def test_what_engines_minimise_is_known_to_weigh_all_rows_alike(no_second_pass, terms):
    case = Case.of(torch.float32)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    loss = head_loss_chunks.head_loss(hidden, weight, *case[2:], terms=terms)
    (loss.objective / 7).backward()
    assert hidden.grad is not None


def test_without_gradients_there_are_no_products_for_them(way, monkeypatch):
    case = Case.of(torch.float32)
    wanted = head_loss_chunks.head_loss(*case)
    products, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *given, **to: products.append(given) or mm(*given, **to))
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    found = head_loss_chunks.head_loss(hidden, weight, *case[2:], gradients=False)
    tokens = case.labels.numel()
    size = tokens if way == "kept" else chunk_tokens(tokens, weight)
    assert len(products) == -(-tokens // size)
    assert not found.nats.requires_grad
    torch.testing.assert_close(found.nats, wanted.nats)


def test_a_frozen_weight_takes_no_product(way):
    case = Case.of(torch.float32)
    hidden = case.hidden.requires_grad_()
    head_loss_chunks.head_loss(hidden, *case[1:]).nats.sum().backward()
    alone = hidden.grad.clone()
    hidden.grad = None
    weight = case.weight.requires_grad_()
    head_loss_chunks.head_loss(hidden, weight, *case[2:]).nats.sum().backward()
    assert torch.equal(alone, hidden.grad) and weight.grad is not None


@pytest.mark.parametrize("label", [-1, 40, 1000], ids=["below", "padding", "above"])
@pytest.mark.parametrize("form", [head_loss.head_loss, head_loss_chunks.head_loss], ids=["full", "chunked"])
@pytest.mark.parametrize("terms", [TERMS["plain"], TERMS["all"]], ids=["plain", "all"])
def test_a_label_outside_the_vocabulary_is_an_error_or_an_infinite_loss(form, label, terms):
    case = Case.of(torch.float32)
    case.labels[0, 3] = label
    try:
        loss = form(*case, terms=terms)
    except (IndexError, RuntimeError) as error:
        assert "out of bounds" in str(error)
    else:
        assert loss.nats.isinf().tolist() == [True, False, False, False]


@pytest.mark.parametrize("form", [head_loss.head_loss, head_loss_chunks.head_loss], ids=["full", "chunked"])
def test_what_is_no_target_may_be_anything(form):
    case = Case.of(torch.float32)
    wanted = form(*case, terms=TERMS["all"])
    case.hidden[1, 5] = float("nan")
    found = form(*case, terms=TERMS["all"])
    assert torch.equal(found.nats, wanted.nats) and found.extras == wanted.extras


def test_second_derivatives_are_refused(way):
    case = Case.of(torch.float32)
    hidden = case.hidden.requires_grad_()
    loss = head_loss_chunks.head_loss(*case).nats.square().sum()
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class Memory(TorchDispatchMode):
    """The most bytes at a time of tensors made under it, `given` ones and views of them left out."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {each.untyped_storage().data_ptr() for each in given}
        self.made: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        self.made += [weakref.ref(each) for each in tree_leaves(found) if isinstance(each, Tensor)]
        alive = [tensor for each in self.made if (tensor := each()) is not None]
        self.made = [weakref.ref(each) for each in alive]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive}
        self.peak = max(self.peak, sum(size for at, size in storages.items() if at not in self.given))
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_a_tenth_of_the_logits_in_fp32(monkeypatch, dtype):
    """Beyond the gradients of hidden states and weight; the latter in fp32 until all is summed."""
    monkeypatch.setattr(head_loss_chunks, "BUFFER_BYTES", 0)
    monkeypatch.setattr(head_loss_chunks, "ROW_BYTES", {"cpu": 2**16})
    tokens, vocab_size, width = 2048, 4096, 32
    hidden, weight = torch.randn(2, tokens // 2, width).to(dtype), torch.randn(vocab_size, width).to(dtype)
    labels = torch.randint(vocab_size, (2, tokens // 2))
    settings = (vocab_size, 0, "", 1, False, *TERMS["plain"], "torch")
    with Memory(hidden, weight, labels) as memory:
        *_, one, other, _ = head_loss_chunks._forward(hidden, weight, labels, *settings, True, True)
        upstream = (torch.ones(()).expand(2), None, None)
        forward = memory.peak
        saved = (one, other, hidden.flatten(0, 1), weight, labels)
        found = head_loss_chunks._backward(*upstream, *saved, *settings, True)
    all_logits = 4 * tokens * vocab_size
    in_fp32 = 4 * weight.numel()
    assert 0 < forward - in_fp32 - hidden.nbytes < 0.1 * all_logits
    assert memory.peak - in_fp32 - 2 * hidden.nbytes - weight.nbytes < 0.1 * all_logits
    assert [each.shape for each in found] == [(tokens, width), weight.shape]


@pytest.mark.parametrize("element_size", [2, 4])
def test_chunks_of_large_vocabularies_are_a_tenth_of_the_logits_in_fp32(element_size):
    tokens, columns = 8192, 128_256
    dtype = torch.bfloat16 if element_size == 2 else torch.float32
    size = chunk_tokens(tokens, torch.empty(columns, 8, dtype=dtype, device="meta"))
    assert size * columns * element_size < 0.1 * 4 * tokens * columns
    assert -(-tokens // size) == (7 if element_size == 2 else 13)


def test_chunks_of_very_many_tokens_take_a_gibibyte():
    """Where the share of all logits would take 2.6."""
    weight = torch.empty(128_256, 8, dtype=torch.bfloat16, device="meta")
    size = chunk_tokens(2**16, weight)
    assert 0.9 * 2**30 < size * 128_256 * 2 <= 2**30 < 0.08 * 4 * 2**16 * 128_256


@pytest.mark.parametrize(
    ("device", "tokens", "columns", "width", "chunks"),
    [
        ("cpu", 2048, 4096, 192, 1),
        ("cpu", 4096, 8192, 384, 4),
        ("cpu", 2048, 50_304, 768, 1),
        ("meta", 4096, 8192, 384, 1),
    ],
)
def test_chunks_are_small_on_a_cpu_where_their_sum_stays_in_its_cache(device, tokens, columns, width, chunks):
    size = chunk_tokens(tokens, torch.empty(columns, width, dtype=torch.bfloat16, device=device))
    assert -(-tokens // size) == chunks


def test_it_passes_through_torch_compile_without_a_break(way):
    case = Case.of(torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=False)
    def compiled(hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, terms: LossTerms):
        return head_loss_chunks.head_loss(hidden * 1.0, weight, labels, vocab_size, terms=terms)

    for objective in OBJECTIVES:
        check(compiled, case, TERMS["all"], objective, 2e-6)


@pytest.fixture
def on_meta(way: str) -> Iterator[torch.device]:
    with torch.device("meta") as device:
        yield device


def test_no_value_is_read(on_meta):
    """On the meta device that is an error; gradients' values included."""
    hidden, weight = torch.randn(2, 9, 8), torch.randn(40, 8)
    labels = torch.zeros(2, 9, dtype=torch.int64)
    settings = (33, 0, "", 1, False, *TERMS["all"], "torch")
    *sums, _, one, other, _ = head_loss_chunks._forward(hidden, weight, labels, *settings, True, True)
    flat = hidden.flatten(0, 1)
    for upstream in (sums[0].new_ones(()).expand(2), sums[0]):
        arguments = (upstream, upstream, upstream, one, other, flat, weight, labels, *settings, True)
        found = head_loss_chunks._backward(*arguments)
        assert [each.shape for each in found] == [flat.shape, weight.shape]
