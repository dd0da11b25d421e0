"""The settings of a run that all of its parts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.on_gpu.roofline import Rates

OUT_OF_TIME = "not measured: the minutes are used up"


@dataclass(frozen=True)
class Setting:
    """A run of one part.

    toy: sizes that a CPU does in seconds. ends: `time.monotonic()` after which nothing new is begun. rates:
    what the GPU should reach; None where nothing is predicted. peak: FLOP/s that MFU refers to. shapes,
    peers: of whole steps; empty = those of the part. isolated: whether a whole step is measured in a process
    of its own. wheels: a folder of packages for these processes. note: is called with a line on what goes on.
    """

    device: torch.device
    toy: bool
    ends: float
    rates: Rates | None
    peak: float | None
    precision: str
    rounds: int
    seconds: float
    shapes: Sequence[str]
    peers: Sequence[str]
    isolated: bool
    wheels: Path | None
    note: Callable[[str], None]

    @property
    def dtype(self) -> torch.dtype:
        """Of what single operators compute on."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def in_time(self) -> bool:
        """Whether something new may begin."""
        return time.monotonic() < self.ends

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
