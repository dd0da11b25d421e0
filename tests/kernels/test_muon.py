"""The arithmetic of Muon's update, in every form, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmkit.kernels import muon as plain
from llmkit.kernels.operators import FORMS, Operators
from llmkit.monitor.hardware import has_avx512_bf16
from llmkit.optim.muon import COEFFICIENTS
from tests.kernels.float64 import relative_error

SHAPES = [(24, 24), (40, 16), (16, 40), (1, 8), (5, 7), (97, 50), (51, 130), (64, 192), (130, 512)]
SIZES = [(1,), (3, 5), (16,), (7, 37), (131, 257)]
ZERO, ONE = torch.zeros(()), torch.ones(())


@pytest.fixture(params=FORMS["muon"])
def muon(request) -> Operators:
    if request.param == "avx512" and not has_avx512_bf16():
        pytest.skip("needs a CPU with AVX-512 BF16")
    return Operators.of({"muon": request.param})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonalised(matrix: Tensor) -> Tensor:
    """By the singular values, to which the iteration does what it would do to numbers."""
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    return u @ torch.diag(values) @ v


def test_the_iteration_acts_on_singular_values_alone(muon) -> None:
    matrices = [random(*shape, seed=i) * 10.0 ** (i - 4) for i, shape in enumerate((*SHAPES, SHAPES[2]))]
    for before, after in zip(matrices, muon.orthogonalise(matrices, COEFFICIENTS), strict=True):
        torch.testing.assert_close(after.double(), orthogonalised(before), rtol=1e-4, atol=1e-4)
    rounded = [matrix.bfloat16() for matrix in matrices]
    for before, after in zip(rounded, muon.orthogonalise(rounded, COEFFICIENTS), strict=True):
        assert after.dtype == torch.bfloat16 and after.shape == before.shape
        assert relative_error(after, orthogonalised(before)) < 0.03
        assert torch.linalg.matrix_norm(after.double(), 2) < 1.3


def test_a_matrix_of_zeros_stays_one_and_others_do_not_see_it(muon) -> None:
    matrices = [torch.zeros(6, 4).bfloat16(), random(6, 4).bfloat16()]
    none, some = muon.orthogonalise(matrices, COEFFICIENTS)
    assert not none.any()
    assert torch.equal(some, muon.orthogonalise(matrices[1:], COEFFICIENTS)[0])
    assert muon.orthogonalise([], COEFFICIENTS) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_and_look_ahead(muon, dtype) -> None:
    gradients = [random(*size, seed=i) for i, size in enumerate(SIZES)]
    buffers = [random(*size, seed=9 + i) for i, size in enumerate(SIZES)]
    before = [each.double() for each in buffers]
    settings = {"scale": torch.tensor(0.25), "skipped": ZERO, "dtype": dtype}
    found = muon.look_ahead(gradients, buffers, 0.9, **settings)
    for gradient, old, buffer, ahead in zip(gradients, before, buffers, found, strict=True):
        wanted = 0.9 * old + 0.1 * 0.25 * gradient.double()
        torch.testing.assert_close(buffer.double(), wanted, rtol=1e-5, atol=1e-6)
        assert ahead.dtype == dtype
        rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5
        wanted = 0.9 * wanted + 0.1 * 0.25 * gradient.double()
        torch.testing.assert_close(ahead.double(), wanted, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_skipped_gradient_changes_no_momentum(muon, dtype) -> None:
    buffers = [random(*size, seed=i) for i, size in enumerate(SIZES)]
    before = [each.clone() for each in buffers]
    gradients = [torch.full_like(each, float("nan")) for each in buffers]
    settings = {"scale": torch.tensor(float("nan")), "skipped": ONE, "dtype": dtype}
    found = muon.look_ahead(gradients, buffers, 0.9, **settings)
    for old, buffer, ahead in zip(before, buffers, found, strict=True):
        assert torch.equal(old, buffer) and torch.equal(ahead, old.to(dtype))


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_decay_and_move_each_by_its_numbers(muon, dtype, rounds) -> None:
    weights = [random(*size, seed=i) for i, size in enumerate(SIZES)]
    before = [each.clone() for each in weights]
    updates = [random(*size, seed=9 + i).to(dtype) for i, size in enumerate(SIZES)]
    sizes, decays = [0.1, 0.2, 0.1, 0.4, 0.1], [0.01, 0.0, 0.01, 0.02, 0.0]
    rounded = [torch.zeros_like(each, dtype=torch.bfloat16) for each in weights] if rounds else []
    muon.descend(weights, updates, sizes, decays, skipped=ONE, rounded=[])
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    muon.descend(weights, updates, sizes, decays, skipped=ZERO, rounded=rounded)
    for weight, old, update, size, decay in zip(weights, before, updates, sizes, decays, strict=True):
        wanted = (1.0 - decay) * old.double() - size * update.double()
        torch.testing.assert_close(weight.double(), wanted, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(weights, rounded, strict=rounds))


def test_a_large_matrix_is_orthogonalised_as_a_scaled_one_of_its_own() -> None:
    """The iteration starts from the matrix divided by its norm, so a wrong norm changes the result."""
    matrix = random(1, 100, 60_000, seed=2)
    unit = matrix / matrix.double().norm().float()
    assert relative_error(plain.iterate(matrix, COEFFICIENTS), plain.iterate(unit, COEFFICIENTS)) < 1e-5
