"""Muon's update by kernels for AVX-512 BF16: what the tests of all forms, ../test_muon.py, leave out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmkit.kernels import muon as plain
from llmkit.kernels.cpu.muon import descend, look_ahead, orthogonalise
from llmkit.monitor.hardware import has_avx512_bf16
from llmkit.optim.muon import COEFFICIENTS
from tests.kernels.float64 import relative_error

pytestmark = pytest.mark.skipif(not has_avx512_bf16(), reason="needs a CPU with AVX-512 BF16")

SHAPES = [(192, 64), (17, 300), (333, 100), (9, 9), (96, 97)]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_it_is_as_close_to_the_exact_iteration_as_pytorchs_in_bf16() -> None:
    matrices = [draw(*shape, seed=i).bfloat16() for i, shape in enumerate(SHAPES)]
    results = [form(matrices, COEFFICIENTS) for form in (orthogonalise, plain.orthogonalise)]
    for matrix, ours, theirs in zip(matrices, *results, strict=True):
        exact = plain.iterate(matrix.double()[None], COEFFICIENTS)[0]
        assert relative_error(ours, exact) < 2.0 * relative_error(theirs, exact)


def test_the_number_of_threads_and_the_company_change_no_bit() -> None:
    matrices = [draw(*shape, seed=i).bfloat16() for i, shape in enumerate(SHAPES)]
    long = [draw(100_003)]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            ahead = look_ahead(
                long, [draw(100_003, seed=1)], 0.9,
                scale=None, skipped=torch.zeros(()), dtype=torch.bfloat16,
            )  # fmt: skip
            weights = [draw(100_003, seed=2)]
            descend(weights, ahead, [0.1], [0.1], skipped=torch.zeros(()), rounded=[])
            found.append([*orthogonalise(matrices, COEFFICIENTS), *ahead, *weights])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    for matrix, result in zip(matrices, found[0], strict=False):
        assert torch.equal(orthogonalise([matrix], COEFFICIENTS)[0], result)


def test_tensors_that_do_not_lie_in_order_are_computed_too() -> None:
    matrix, gradient = draw(30, 20).bfloat16().T, draw(30, 20).T
    (found,) = orthogonalise([matrix], COEFFICIENTS)
    assert torch.equal(found, orthogonalise([matrix.contiguous()], COEFFICIENTS)[0])
    buffer = torch.zeros(20, 30)
    settings = {"scale": None, "skipped": torch.zeros(()), "dtype": torch.bfloat16}
    look_ahead([gradient], [buffer], 0.5, **settings)
    assert torch.equal(buffer, 0.5 * gradient)
