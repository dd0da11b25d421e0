"""Host memory for copies of the state: when it is taken, and what follows where there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkit.checkpoint.pieces import Piece
from llmkit.loop import host_copies
from llmkit.loop.control import Control
from llmkit.loop.host_copies import HostCopies
from llmkit.loop.phases import Phases
from llmkit.parallel.mesh import Mesh
from tests.limits import HANG

SIZE = 3 * 4096


def trainer(**settings: Any) -> Any:
    """As much of one as is asked here: three pieces of 4 kB."""
    notes: list[str] = []

    def read_pieces() -> Iterator[Piece]:
        for name in "abc":
            yield Piece(name, "master", (1024,), ((0, 1024),), (0, 1024), torch.zeros(1024))

    return SimpleNamespace(
        config=SimpleNamespace(checkpoint=SimpleNamespace(
            **{"background": True, "every_steps": 5, "every_minutes": 0.0, **settings}
        )),
        mesh=Mesh(), control=Control(Mesh()), phases=Phases(),
        engine=SimpleNamespace(read_pieces=read_pieces), console=SimpleNamespace(note=notes.append),
        notes=notes,
    )  # fmt: skip


def has(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(host_copies, "free_memory", lambda: free)


@pytest.mark.parametrize(("free", "fits"), [(None, True), (4 * SIZE, True), (2 * SIZE, False)])
def test_processes_of_a_host_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, free: int | None, fits: bool
) -> None:
    has(monkeypatch, free)
    t = trainer()
    copies = HostCopies(t, local_size=3)
    assert (copies.memory() is not None) == fits == (copies.memory() is not None)
    assert len(t.notes) == (not fits) and all("for each of its processes" in note for note in t.notes)


def test_it_is_taken_after_two_steps_where_saves_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, None)
    for settings, taken in (
        ({}, True), ({"every_steps": 0}, False), ({"every_steps": 0, "every_minutes": 30.0}, True),
        ({"background": False}, False),
    ):  # fmt: skip
        copies = HostCopies(trainer(**settings), 1)
        copies.prepare_if_expected()
        assert copies._memory is None
        copies.prepare_if_expected()
        assert (copies._memory is not None) == taken
    assert copies.memory() is None


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_memory_that_cannot_be_had_is_no_error(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def allocate(*arguments: Any) -> None:
        raise error("CUDA error: out of memory\nmore of it")

    has(monkeypatch, None)
    monkeypatch.setattr("llmkit.checkpoint.stage.HostMemory.allocate", allocate)
    t = trainer()
    assert HostCopies(t, 1).memory() is None
    assert "and CUDA error: out of memory" in t.notes[0]


def test_the_end_waits_for_memory_that_is_being_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, None)
    waited_for, taken = threading.Event(), threading.Event()
    wait = host_copies.wait

    def allocate(*arguments: Any) -> None:
        assert waited_for.wait(HANG)
        taken.set()

    def waiting(*arguments: Any) -> Any:
        waited_for.set()
        return wait(*arguments)

    monkeypatch.setattr("llmkit.checkpoint.stage.HostMemory.allocate", allocate)
    monkeypatch.setattr(host_copies, "wait", waiting)
    copies = HostCopies(trainer(), 1)
    copies.close()
    assert not taken.is_set()
    copies.prepare_if_expected()
    copies.prepare_if_expected()
    copies.close()
    assert taken.is_set()
