"""What the tests of this room share: a small model's tensors, and saving them in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.write import save
from llmkit.parallel.slices import full_box

Tensors = dict[str, Tensor]
Save = Callable[..., Path]


def _tensors(step: int) -> Tensors:
    generator = torch.Generator().manual_seed(step)
    return {
        "embedding": torch.randn(50, 16, generator=generator),
        "blocks.0.norm": torch.randn(16, generator=generator),
        "blocks.0.q": torch.randn(4, 4, 16, generator=generator),
    }


def _pieces(tensors: Tensors) -> list[Piece]:
    return [
        Piece(name, kind, tuple(t.shape), full_box(tuple(t.shape)), (0, t.numel()), (t + offset).view(-1))
        for name, t in tensors.items()
        for offset, kind in enumerate(("master", "exp_avg", "exp_avg_sq"))
    ]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power will be cut in these tests; which calls are made in which order is tested all the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def tensors() -> Callable[[int], Tensors]:
    """tensors(step): the weights of that step."""
    return _tensors


@pytest.fixture
def pieces() -> Callable[[Tensors], list[Piece]]:
    """pieces(tensors): weights as masters, with moments."""
    return _pieces


@pytest.fixture
def save_step(tmp_path: Path) -> Save:
    """save_step(step, **other arguments of save): saves into tmp_path what `tensors` gives for the step."""

    def run(step: int, **changes: Any) -> Path:
        arguments: dict[str, Any] = {
            "pieces": _pieces(_tensors(step)),
            "state": {"step": step, "tokens": 100 * step, "schedule": [0.5, None]},
            "model": {"hidden_size": 16},
            "config": {"run": {"name": "demo"}},
            "extra_files": {"tokenizer.json": b'{"model": "bytes"}'},
            "keep_last": 5,
        }
        return save(tmp_path, step, **{**arguments, **changes})

    return run
