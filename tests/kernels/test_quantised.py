"""Linear layers of weights in 8 or 4 bits: the numbers by hand, the products against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmkit.config.operators import QUANTISED
from llmkit.errors import UserError
from llmkit.kernels import quantised
from llmkit.kernels.quantised import QuantisedWeight, dequantise, linear, prepare, quantise, rounded
from tests.kernels.float64 import relative_error

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
]  # fmt: skip
"""The levels, from appendix E of the paper."""
LEVELS = {"int8": [level / 127 for level in range(-127, 128)], "nf4": NF4}


@pytest.fixture(autouse=True)
def _drawn_alike():
    """A value half-way between two levels may be rounded either way."""
    torch.manual_seed(0)


@pytest.fixture(params=list(QUANTISED))
def form(request):
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
        prepare("nf4")
    return request.param


def by_hand(values: Tensor, form: str) -> Tensor:
    """Of each 64 elements of a row the nearest levels times the largest magnitude, float64."""
    levels = torch.tensor(LEVELS[form], dtype=torch.float64)
    found = []
    for block in values.double().split(64, -1):
        scale = block.abs().amax(-1, keepdim=True)
        share = block / scale.where(scale > 0, 1.0)
        found.append(levels[(share[..., None] - levels).abs().argmin(-1)] * scale)
    return torch.cat(found, -1)


def weight_of(values: Tensor, form: str) -> QuantisedWeight:
    weight = QuantisedWeight(form, *values.shape)
    weight.write(0, values)
    return weight


@pytest.mark.parametrize("shape", [(7, 128), (5, 100), (3, 64), (2, 3)])
def test_values_are_the_nearest_levels_of_their_block(form, shape):
    values = torch.randn(shape) * torch.logspace(-6, 3, shape[0])[:, None]
    values[1] = 0.0
    found, wanted = rounded(values, form), by_hand(values, form)
    assert found.shape == shape and found.dtype == torch.float32
    assert torch.equal(found[1], torch.zeros(shape[1]))
    assert relative_error(found, wanted) < 1e-6


def test_4_bits_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes").functional
    values = torch.randn(24, 192)
    codes, state = functional.quantize_4bit(values, blocksize=64, quant_type="nf4")
    found, scales = quantise(values, "nf4")
    assert torch.equal(found.flatten(), codes.flatten()) and torch.equal(scales.flatten(), state.absmax)
    assert torch.equal(rounded(values, "nf4"), functional.dequantize_4bit(codes, state))


def test_rows_are_written_where_they_belong_and_take_these_bytes(form):
    values = torch.randn(9, 100)
    whole, parts = weight_of(values, form), QuantisedWeight(form, 9, 100)
    for first in (6, 0, 3):
        parts.write(first, values[first : first + 3])
    assert torch.equal(parts.codes, whole.codes) and torch.equal(parts.scales, whole.scales)
    assert torch.equal(whole.values(torch.float32), rounded(values, form))
    assert whole.codes.nbytes == 9 * 128 * QUANTISED[form] // 8 and whole.scales.nbytes == 9 * 2 * 4


def test_half_of_a_row_of_whole_blocks_is_rounded_as_the_row_is(form):
    values = torch.randn(4, 256)
    halves = [rounded(half.contiguous(), form) for half in values.split(128, -1)]
    assert torch.equal(torch.cat(halves, -1), rounded(values, form))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_rounded_weight(form, dtype, tolerance, bias):
    values = torch.randn(48, 100)
    added = torch.randn(48).to(dtype).requires_grad_() if bias else None
    x, dy = torch.randn(3, 7, 100).to(dtype).requires_grad_(), torch.randn(3, 7, 48).to(dtype)
    weight = weight_of(values, form)
    y = linear(x, weight, added)
    y.backward(dy)
    exact = weight.values(torch.float32).double()
    wanted = x.detach().double() @ exact.mT + (0.0 if added is None else added.detach().double())
    assert y.dtype == x.grad.dtype == dtype
    assert relative_error(y, wanted) < tolerance
    assert relative_error(x.grad, dy.double() @ exact) < tolerance
    if added is not None:
        assert relative_error(added.grad, dy.double().sum((0, 1))) < tolerance


def test_a_weight_that_is_a_tensor_is_multiplied_as_it_is():
    x, weight = torch.randn(2, 5), torch.randn(3, 5, requires_grad=True)
    linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(3, 5))


def test_nothing_but_the_codes_is_kept_for_the_backward_pass(form):
    weight, kept = weight_of(torch.randn(48, 128), form), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        linear(torch.randn(6, 128, requires_grad=True), weight)
    assert {each.data_ptr() for each in kept} == {weight.codes.data_ptr(), weight.scales.data_ptr()}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(form, wrong):
    values = torch.randn(2, 64)
    values[1, 3] = wrong
    found = rounded(values, form)
    assert found[0].isfinite().all() and not found[1].isfinite().all()


def test_the_error_of_gaussian_weights_is_the_one_documented(form):
    values = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    low, high = {"int8": (0.005, 0.006), "nf4": (0.085, 0.1)}[form]
    assert low < relative_error(rounded(values, form), values.double()) < high


def test_all_of_it_is_compiled(form):
    """One graph, which computes the same bits."""
    values, x = torch.randn(48, 100), torch.randn(2, 8, 100).requires_grad_()
    weight = weight_of(values, form)

    def product(x: Tensor) -> Tensor:
        return linear(x, weight)

    compiled = torch.compile(product, fullgraph=True, dynamic=False, backend="aot_eager")
    found, wanted = compiled(x), product(x)
    assert torch.equal(found, wanted)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0])


def test_without_the_package_4_bits_are_refused(monkeypatch):
    monkeypatch.setattr(quantised, "missing_extra", lambda extra, module: f"{module} of {extra}")
    with pytest.raises(UserError, match=r"train\.lora\.quantize_base.*bitsandbytes of quantize"):
        prepare("nf4")
    prepare("int8")


def test_codes_stand_for_the_same_in_every_type(form):
    codes, scales = quantise(torch.randn(3, 70), form)
    exact = dequantise(codes, scales, 70, form, torch.float32)
    assert torch.equal(dequantise(codes, scales, 70, form, torch.bfloat16), exact.bfloat16())
