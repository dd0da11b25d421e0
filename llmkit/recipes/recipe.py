"""The recipe that `llmkit new` writes: its settings at the size they were tuned at, and how they scale.

That size is the demo's (configs/demo.yaml): `WIDTH` wide, `STEPS` steps. docs/recipes.md has the sources of
every rule, and what was measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

WIDTH = 192
"""Width that the rates below were tuned at."""
STEPS = 1361
"""Optimizer steps that the weight decay was tuned at."""

WIDTH_PER_LAYER = 64
"""Width of a model, over its number of blocks (nanochat)."""
WIDTHS_PER_LAYER = (48, 80)
"""The least and the most where the width is chosen to meet a number of parameters or FLOPs: between them
the loss is flat (Kaplan et al. 2020, figure 5)."""
TOKENS_PER_PARAMETER = 12.0
"""Training tokens for each weight of the blocks' matrices and the head (nanochat; Hoffmann et al. 2022 have
20 for each weight of all)."""

BATCH_TOKENS, BATCH_AT_TOKENS, BATCH_EXPONENT = 2.0**19, 1.32e9, 0.383
"""The batch of a run over `BATCH_AT_TOKENS` (nanochat's, measured at 12 layers), and the exponent by which it
grows with the tokens of a run (Bergsma et al. 2025)."""
LEAST_STEPS = STEPS
"""Where the line above leaves fewer steps than this, the batch is smaller."""

WARMUP, DECAY = 0.03, "cosine"
"""Share of the steps that warm up; shape of the decay."""


class Rate(NamedTuple):
    """A learning rate, tuned at `WIDTH`, and the exponent of width that it scales by."""

    value: float
    exponent: float

    def at(self, width: int) -> float:
        """The rate for another width."""
        return self.value * (width / WIDTH) ** self.exponent


MATRICES = Rate(8.0e-3, -0.5)
"""Of Muon. Its updates have the RMS 0.2 at any shape, hence a spectral norm that grows with the root of the
width; features change alike at any width where it stays the same (Yang et al. 2023)."""
WEIGHT_DECAY = 0.1
"""At `WIDTH` and `STEPS`."""


class Setting(NamedTuple):
    """A value of a configuration, and why it is this one."""

    value: Any
    why: str = ""


MODEL = {
    "qk_norm": Setting(True, "bounds the attention scores, so that large rates stay stable"),
}
"""Settings of the model that do not depend on its size."""
TRAIN: dict[str, Setting] = {}
"""Likewise of the section `train`."""
OPTIMIZER = {"name": Setting("muon", "for the blocks' matrices; AdamW for the rest")}
"""Likewise of the section `optimizer`."""
SCHEDULE = {
    "name": Setting(DECAY),
    "min_lr_ratio": Setting(0.02, "of the peak"),
}
"""Likewise of the section `schedule`."""
