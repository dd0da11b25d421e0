"""When a pass counts as another result; runs in which one does: test_checks.py."""

from __future__ import annotations

import math

import pytest

from llmkit.engine.fingerprint import Fingerprint
from llmkit.loop.repeat import distances, suspects


def of(bits: int, projection: float, norm: float = 1.0) -> Fingerprint:
    return Fingerprint(["w"], [bits], [norm], [projection])


SAME = of(1, 0.5)


@pytest.mark.parametrize(
    ("passes", "wrong"),
    [
        ([SAME, SAME, SAME], False),
        ([SAME, of(2, 0.5), SAME], True),  # one wrong bit, however small, where the others agree
        ([SAME, SAME, of(2, 0.5 + 1e-12)], True),
        ([of(1, 0.5), of(2, 0.5 + 2e-8), of(3, 0.5 - 3e-8)], False),  # rounding of atomic additions
        ([of(1, 0.5), of(2, 0.5 + 2e-4), of(3, 0.5 - 3e-4)], False),  # the same in bf16
        ([of(1, 0.5), of(2, 0.5 + 2e-8), of(3, 0.6)], True),
        ([of(1, 0.5), of(2, 0.9), of(3, 0.1)], True),  # no two are near each other
        ([of(1, 0.5), of(2, math.nan), of(3, 0.5 + 1e-8)], True),
        ([of(1, 0.5, math.inf), of(2, 0.5 + 1e-8), of(3, 0.5 + 2e-8)], True),
    ],
)
def test_a_pass_that_stands_apart_is_suspect(passes: list[Fingerprint], wrong: bool) -> None:
    assert suspects(passes) == ["w"] * wrong


def test_distances_are_relative_to_the_size_of_a_tensor() -> None:
    assert distances(of(1, 50.0, 100.0), of(2, 51.0, 100.0)) == {"w": pytest.approx(0.01)}
    assert distances(SAME, SAME) == {"w": 0.0}
