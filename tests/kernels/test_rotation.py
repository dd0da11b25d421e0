"""Rotary positions against complex multiplication."""

from __future__ import annotations

import pytest
import torch

from llmkit.kernels.rotation import rotate
from llmkit.model.rope import rope_tables

LENGTH, HEADS, WIDTH, THETA = 11, 3, 10, 500.0


def test_pairs_are_rotated_as_complex_numbers_are():
    x = torch.randn(2, LENGTH, HEADS, WIDTH, dtype=torch.float64).float()
    tables = rope_tables(LENGTH, WIDTH, THETA)
    both = rotate(x, x[:, :, :1], *tables)
    assert torch.equal(both[0][:, :, :1], both[1])
    found = both[0].double()
    half = WIDTH // 2
    numbers = torch.complex(x[..., :half].double(), x[..., half:].double())
    angles = torch.outer(torch.arange(LENGTH).double(), THETA ** -(torch.arange(half).double() / half))
    turned = numbers * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag), -1), rtol=1e-5, atol=1e-5)


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, WIDTH)
    tables = rope_tables(LENGTH, WIDTH, THETA)

    def score(query: int, key: int) -> float:
        turned = (rotate(x, x, *(t[at : at + 1] for t in tables))[0] for x, at in ((q, query), (k, key)))
        return float((next(turned) * next(turned)).sum())

    assert score(7, 4) == pytest.approx(score(3, 0), abs=1e-5)
    assert score(7, 4) != pytest.approx(score(4, 7), abs=1e-3)


def test_the_type_stays_and_the_arithmetic_is_fp32():
    x = torch.randn(1, LENGTH, HEADS, WIDTH).bfloat16()
    tables = rope_tables(LENGTH, WIDTH, THETA)
    found = rotate(x, x[:, :, :2], *tables)
    assert {each.dtype for each in found} == {torch.bfloat16}
    assert torch.equal(found[0], rotate(x.float(), x.float(), *tables)[0].bfloat16())
