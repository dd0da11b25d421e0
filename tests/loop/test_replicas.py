"""Which ranks hold something else than the others; runs with a wrong bit: test_checks.py."""

from __future__ import annotations

import json
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkit.engine.base import Copies
from llmkit.errors import DisagreementError
from llmkit.loop.replicas import Sums, compare_copies, ranks_along, sum_copies
from llmkit.parallel.mesh import Mesh

ALL = "0,1,2"


class FakeMesh:
    """Of three ranks, the others of which hold `others`."""

    def __init__(self, *others: dict[str, int]) -> None:
        self.others = others

    def all_gather_text(self, text: str) -> list[str]:
        others: list[Any] = list(self.others)
        if isinstance(json.loads(text)[ALL], str):  # of a rank first a digest, then all it has
            others = [sha256(json.dumps(other).encode()).hexdigest() for other in others]
        return [text, *(json.dumps({ALL: other}) for other in others)]


def compare(*others: dict[str, int], found: list[Any]) -> None:
    sums = SimpleNamespace(step=8, read=lambda: {ALL: {"a": 1, "b": -2}})
    events = SimpleNamespace(record=lambda name, **fields: found.append((name, fields)))
    t = SimpleNamespace(mesh=FakeMesh(*others), events=events, hosts=["n1", "n1", "n2"])
    compare_copies(t, sums)  # type: ignore[arg-type]


def test_equal_copies_are_no_fault() -> None:
    compare({"a": 1, "b": -2}, {"a": 1, "b": -2}, found=[])


def test_the_rank_in_the_minority_is_named_with_its_host_and_what_differs() -> None:
    found: list[Any] = []
    message = r"step 8: rank 2 \(n2\) holds other values .* of b:"
    with pytest.raises(DisagreementError, match=message) as caught:
        compare({"a": 1, "b": -2}, {"a": 1, "b": 3}, found=found)
    assert caught.value.hosts == ("n2",)
    ((name, fields),) = found
    assert name == "replicas_differ" and fields["ranks"] == [2] and fields["tensors"] == ["b"]


def test_without_a_majority_nobody_is_blamed() -> None:
    with pytest.raises(DisagreementError, match="cannot be told which are right, of a and b") as caught:
        compare({"a": 2, "b": -2}, {"a": 1, "b": 3}, found=[])
    assert caught.value.hosts == ()


def test_of_two_copies_nobody_knows_which_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ALL", "0,1")
    with pytest.raises(DisagreementError, match=r"rank 0 \(n1\) and rank 1 \(n1\) hold different") as caught:
        compare({"a": 1, "b": 3}, found=[])
    assert caught.value.hosts == ()


def test_any_single_bit_changes_a_sum() -> None:
    engine = SimpleNamespace(copies=lambda: iter([Copies("w", ("data",), weights)]))
    mesh = Mesh(0, 2)
    for dtype, bits in ((torch.float32, torch.int32), (torch.bfloat16, torch.int16)):
        weights = torch.randn(1001).to(dtype)
        before = sum_copies(engine, mesh, 1).read()  # type: ignore[arg-type]
        for bit in range(torch.iinfo(bits).bits - 1):
            weights.view(bits)[7] ^= 1 << bit
            assert sum_copies(engine, mesh, 1).read() != before  # type: ignore[arg-type]
            weights.view(bits)[7] ^= 1 << bit
        assert sum_copies(engine, mesh, 1).read() == before  # type: ignore[arg-type]
        exact = int(weights.view(bits).long().sum())
        assert before == {"0,1": {"w": exact}}


def test_nothing_is_summed_that_nobody_else_holds() -> None:
    engine = SimpleNamespace(copies=lambda: iter([Copies("w", ("tensor",), torch.ones(3))]))
    assert sum_copies(engine, Mesh(0, 2), 4) == Sums(4, {}, None)  # type: ignore[arg-type]


def test_the_ranks_along_dimensions() -> None:
    mesh = Mesh(3, 8, {"tensor": 2})  # data 1, tensor 1
    assert ranks_along(mesh, ("data", "context")) == [1, 3, 5, 7]
    assert ranks_along(mesh, ("tensor",)) == [2, 3]
    assert ranks_along(mesh, ("data", "context", "tensor")) == list(range(8))
