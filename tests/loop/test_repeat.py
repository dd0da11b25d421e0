"""When a pass counts as another result; runs in which one does: test_checks.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.engine.fingerprint import Fingerprint
from llmkit.errors import DisagreementError
from llmkit.loop.repeat import distances, repeat, suspects
from llmkit.parallel.mesh import Mesh


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


class Passes:
    """Stands for a trainer, and notes signs of life and passes in their order. bits: of each pass."""

    def __init__(self, bits: list[int]) -> None:
        self.done: list[str] = []
        self.watch = self.engine = self.control = self.mesh = self.console = self
        self.state = SimpleNamespace(step=4)
        self._bits = iter(bits)

    def alive(self) -> None:
        self.done.append("alive")

    def fingerprint(self, batch: Any) -> Fingerprint:
        self.done.append("pass")
        return of(next(self._bits), 0.5)

    def largest(self, value: int) -> list[int]:
        return [value]

    def all_gather_text(self, text: str) -> list[str]:
        return [text]

    def log(self, text: str) -> None: ...

    def note_once(self, text: str) -> None: ...


def test_each_pass_is_a_sign_of_life_as_a_step_with_three_more_lasts_longer_than_any() -> None:
    twice, thrice = Passes([1, 1]), Passes([1, 2, 3])
    for t in (twice, thrice):
        repeat(t, SimpleNamespace(), "faults.repeat_every", lambda: None)  # type: ignore[arg-type]
    assert twice.done == ["alive", "pass"] * 2 + ["alive"]
    assert thrice.done == ["alive", "pass"] * 3 + ["alive"]


@dataclass(frozen=True)
class FoundBySecond(Mesh):
    """Four ranks, of which the second one has not agreed with itself."""

    def all_gather_text(self, text: str) -> list[str]:
        return ["[]", '["w"]', "[]", "[]"]


@pytest.mark.parametrize(
    ("sizes", "ranks", "hosts", "said"),
    [
        ({}, [1], ["b"], r"5: rank 1 \(b\) computed .* best without that node"),
        ({"expert": 2}, [0, 1], [], r"processes that share experts, rank 0 \(a\) and rank 1 \(b\),"),
        ({"expert": 2, "tensor": 2}, [0, 1, 2, 3], [], r"experts, rank 0 \(a\), rank 1 \(b\), rank 2 "),
    ],
)
def test_ranks_that_send_each_other_tokens_are_named_together_and_no_host(
    sizes: dict[str, int], ranks: list[int], hosts: list[str], said: str
) -> None:
    t: Any = Passes([1, 1])
    t.mesh, t.hosts, recorded = FoundBySecond(0, 4, sizes), ["a", "b", "c", "d"], list[dict[str, Any]]()
    t.events = SimpleNamespace(record=lambda name, **fields: recorded.append(fields))
    batch: Any = SimpleNamespace()
    with pytest.raises(DisagreementError, match=said) as error:
        repeat(t, batch, "spike", lambda: None)
    assert list(error.value.hosts) == hosts
    assert (recorded[0]["ranks"], recorded[0]["hosts"]) == (ranks, hosts)
