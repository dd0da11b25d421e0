"""The settings of the update: optimizer, groups of parameters, schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.section import NonNegative, Positive, Section, Share

Rate = Annotated[float, Field(gt=0.0, le=10.0)]
AboveZero = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Momentum, Momentum], Field(strict=False)]


class ParameterGroup(Section):
    """Parameters with values of their own; each that is not given is that of `optimizer`."""

    params: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1)]
    """Patterns of their names, as in `blocks.*.attention.*`: * is any text, ? a character, [01] one of these;
    `llmkit config` lists what each group has. No parameter may be in two groups."""
    name: Literal["adamw", "muon"] | None = None
    """The rule: muon for matrices of the blocks only; adamw for any. Default: as `optimizer.name` decides."""
    learning_rate: Rate | None = None
    """Peak learning rate; the schedule multiplies those of all groups alike."""
    betas: Betas | None = None
    """Decay of AdamW's first and second moments."""
    eps: AboveZero | None = None
    """Added to the root of AdamW's second moment."""
    momentum: Momentum | None = None
    """Decay of Muon's momentum."""
    weight_decay: Decay | None = None
    """Decoupled weight decay of all parameters of the group; default: `optimizer.weight_decay` for those with
    two dimensions or more, none for norms, biases and other vectors."""


class Optimizer(Section):
    """The rule that turns gradients into updates."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw = AdamW (Loshchilov and Hutter 2019); muon = Muon (Jordan et al. 2024) for the matrices of
    the blocks, scaled so that AdamW's learning rate suits it, and AdamW for the rest."""
    learning_rate: Rate = 6e-4
    """Peak learning rate."""
    betas: Betas = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: AboveZero = 1e-8
    """Added to the root of the second moment."""
    momentum: Momentum = 0.95
    """Decay of Muon's momentum (only for muon)."""
    momentum_warmup_steps: NonNegative = 0
    """Steps in which Muon's momentum rises linearly from `momentum_start`, in all groups by the same factors;
    0 = it is constant (only for muon)."""
    momentum_start: Momentum = 0.85
    """Muon's momentum in the first step of its warm-up."""
    weight_decay: Decay = 0.1
    """Decoupled weight decay, on matrices only (embeddings too; not norms and biases)."""
    groups: list[ParameterGroup] = []
    """Parameters with values of their own."""

    @property
    def rules(self) -> frozenset[str]:
        """Names of the optimizers that it, or a group, chooses."""
        return frozenset({self.name, *(group.name for group in self.groups if group.name is not None)})


class Schedule(Section):
    """The learning rate over the steps."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after the warm-up; wsd = constant, then a decay over the last `decay_fraction`."""
    steps: Positive | None = None
    """Steps that it spans, warm-up included; then the learning rate stays at its end. Default: all steps of
    the run, so that another train.max_steps changes it (not for constant)."""
    warmup_steps: NonNegative = 100
    """Steps of linear warm-up from 0."""
    min_lr_ratio: Share = 0.1
    """Learning rate at the end, as a share of the peak (not for constant)."""
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Share of the steps that decay (only for wsd)."""
    decay_shape: Literal["linear", "sqrt", "cosine"] = "linear"
    """Of the decay, t being the share of it that is over: linear = 1 - t; sqrt = 1 - sqrt(t) (Haegele et al.
    2024); cosine = half a cosine wave (only for wsd)."""
