"""Runs of several ranks, one of which has a fault in its numbers; one layout after the other."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from llmkit.api import load
from llmkit.engine.deepspeed import import_deepspeed
from llmkit.errors import AlreadyReported
from llmkit.loop.hook import Hook, Request
from llmkit.loop.options import Options
from llmkit.model.norm import RMSNorm
from llmkit.train import train
from tests.ranks import agreed_port

GUILTY = 1
"""The rank with the fault."""


class NotFinite(Hook):
    """The gradient of the guilty rank is NaN in the third step, from the middle of its backward pass on."""

    def on_start(self, t: Any) -> None:
        if t.mesh.rank == GUILTY:
            t.engine.model.blocks[0].register_forward_hook(self.spoil)
        self.t = t

    def spoil(self, module: Any, inputs: Any, output: Any) -> None:
        if self.t.state.step == 2:
            output.register_hook(lambda gradient: gradient * float("nan"))


class Huge(NotFinite):
    """It is a million times too large in the third step."""

    def spoil(self, module: Any, inputs: Any, output: Any) -> None:
        if self.t.state.step == 2:
            output.register_hook(lambda gradient: gradient * 1e6)


class Unsteady(NotFinite):
    """Every second pass of the guilty rank has an error in one element of the gradient."""

    def __init__(self) -> None:
        self.calls = 0

    def spoil(self, module: Any, inputs: Any, output: Any) -> None:
        self.calls += 1
        if self.calls % 2:
            output.register_hook(_flip)


def _flip(gradient: torch.Tensor) -> torch.Tensor:
    wrong = gradient.clone()
    wrong.view(-1)[7] *= 1.0 + 2.0**-20
    return wrong


class Flipped(Hook):
    """The lowest bit of a weight of the guilty rank changes just before the ranks compare."""

    def request(self, t: Any) -> Request | None:
        if t.mesh.rank == GUILTY and t.state.step == 4:
            norm = next(module for module in t.engine.model.modules() if isinstance(module, RMSNorm))
            with torch.no_grad():
                norm.weight.view(torch.int32)[:1] ^= 1
        return None


FAULTS: dict[str, type[Hook]] = {
    "none": Hook, "nan": NotFinite, "huge": Huge, "unsteady": Unsteady, "flipped": Flipped,
}  # fmt: skip


def runs(folder: str, cases: dict[str, tuple[str, list[str]]]) -> list[int]:
    """Each case by its name: its fault, and its settings. The exit codes."""
    import_deepspeed()  # before any process group
    codes = []
    with contextlib.chdir(folder):
        for name, (fault, overrides) in cases.items():
            loaded = load("tiny.yaml", [f"run.name={name}", *overrides])
            with patch.dict(os.environ, MASTER_PORT=str(agreed_port(Path(), name))):
                hooks = [FAULTS[fault]()]
                try:
                    codes.append(train(loaded, Options(), started=0.0, environment=os.environ, hooks=hooks))
                except AlreadyReported as error:
                    codes.append(error.code)
    return codes
