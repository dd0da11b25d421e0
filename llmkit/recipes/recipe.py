"""The recipe that `llmkit new` writes: its settings at the size they were tuned at, and how they scale.

That size is the demo's (configs/demo.yaml): `WIDTH` wide, `STEPS` steps. docs/recipes.md has the sources of
every rule, and what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
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

WARMUP = 0.03
"""Share of the steps that warm up."""


class Setting(NamedTuple):
    """A value of a configuration, and why it is this one."""

    value: Any
    why: str = ""


class Scaled(NamedTuple):
    """A value tuned at `WIDTH`, and the exponent of width that it scales by."""

    value: float
    exponent: float = 0.0

    def at(self, width: int) -> float:
        """The value for another width, to three significant digits."""
        return rounded(self.value * (width / WIDTH) ** self.exponent)

    def setting(self, width: int, why: str = "") -> Setting:
        """The same, with how it came about."""
        how = f"{self.value:g} times (width / {WIDTH})^{self.exponent:g}" if self.exponent else ""
        return Setting(self.at(width), "; ".join(part for part in (why, how) if part))


class Group(NamedTuple):
    """An entry of optimizer.groups: parameters by patterns, their rate, and what else differs."""

    params: tuple[str, ...]
    why: str
    rate: Scaled | None = None
    others: Mapping[str, Any] = MappingProxyType({})


def rounded(value: float) -> float:
    """To three significant digits."""
    return float(f"{value:.3g}")


MATRICES = Scaled(1.0e-2, -0.5)
"""Muon's rate. Its updates have the RMS 0.2 at any shape, hence a spectral norm that grows with the root of
the width; features change alike at any width where it stays the same (Yang et al. 2023)."""
WEIGHT_DECAY = 0.1
"""At `WIDTH` and `STEPS`."""
INITIAL = Scaled(0.07, -0.5)
"""Standard deviation of the initial matrices: about 1 / sqrt(width), so that products keep the size of what
they are given."""

MODEL = {
    "mlp": Setting("relu2", "as good as a gated MLP of as many weights, and cheaper"),
    "qk_norm": Setting(True, "bounds the attention scores, so that large rates stay stable"),
    "key_shift": Setting(0.5, "lets one layer find what followed an earlier occurrence of a token"),
    "tie_word_embeddings": Setting(False, "embedding and head want rates and initial weights of their own"),
    "embedding_norm": Setting(True, "blocks get the same size of input, however the embedding grows"),
    "value_embeddings": Setting(True, "tables of weights that cost little time (3 % of a step of the demo)"),
    "residual_scalars": Setting(True, "nanochat's; within the noise of runs in the demo"),
    "final_logit_softcapping": Setting(15.0, "no logit grows without bound"),
    "embedding_initializer_range": Setting(0.8, "nanochat's, as its rate is"),
    "head_initializer_range": Setting(0.001, "the first loss is that of a uniform guess"),
}
"""Settings of the model that do not depend on its size."""
TRAIN = {"gradient_clipping": Setting(0.0, "Muon's updates have the same size whatever the gradient's")}
"""Likewise of the section `train`."""
OPTIMIZER = {
    "name": Setting("muon", "for the blocks' matrices; AdamW for the rest"),
    "betas": Setting([0.8, 0.95], "AdamW's, as nanochat has them"),
    "eps": Setting(1e-10, "AdamW's: gradients of rare tokens are small"),
}
"""Likewise of the section `optimizer`."""
GROUPS = (
    Group(
        ("embedding.weight",), "a token's row has a gradient in few steps only", Scaled(0.6, -0.5),
        {"betas": [0.8, 0.995], "weight_decay": 0.001},
    ),
    Group(
        ("*.value_embedding.weight",), "likewise", Scaled(0.3, -0.5),
        {"betas": [0.8, 0.995], "weight_decay": 0.01},
    ),
    Group(
        ("head.weight",), "not a matrix for Muon: each row is a token", Scaled(0.016, -0.5),
        {"betas": [0.8, 0.96], "weight_decay": 0.01},
    ),
    Group(("*.residual_scalars.embedding",), "a number a layer", Scaled(0.1), {"betas": [0.96, 0.95]}),
    Group(("*.residual_scalars.stream",), "a number a layer, which acts on all layers above", Scaled(0.005)),
)  # fmt: skip
"""Parameters with rates of their own."""
SCHEDULE = {
    "name": Setting("wsd", "constant, then linear down"),
    "decay_fraction": Setting(0.65, "of the steps: nanochat's, and better than 1.0 in the demo"),
    "min_lr_ratio": Setting(0.05, "of the peak"),
}
"""Likewise of the section `schedule`."""
