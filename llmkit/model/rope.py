"""Rotary position embedding (Su et al. 2021), in the half-split layout of Llama checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmkit.config.model_section import UNSCALED, RopeScaling


def rope_tables(
    length: int, width: int, theta: float, scaling: RopeScaling = UNSCALED, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0..length-1: two tensors (length, width // 2), fp32.

    width: channels of a head that are rotated. scale: a factor of both, and so of every query and key that
    they rotate: scores become scale^2 of theirs; beside it `attention_factor` of the scaling acts.
    """
    angle = torch.outer(torch.arange(length).float(), rope_frequencies(width, theta, scaling))
    scale *= attention_factor(scaling)
    return angle.cos() * scale, angle.sin() * scale


def rope_frequencies(width: int, theta: float, scaling: RopeScaling = UNSCALED) -> Tensor:
    """Radians a position by which each pair of channels turns, (width // 2,) fp32.

    As in transformers' `modeling_rope_utils`, operation by operation, so that all bits are equal.
    """
    # Whole numbers first: under ZeRO-3 DeepSpeed rounds what constructors make in floating point.
    base = theta ** (torch.arange(0, width, 2).float() / width)
    if scaling.rope_type == "linear":
        assert scaling.factor is not None
        return 1.0 / base / scaling.factor
    if scaling.rope_type == "llama3":
        return _llama3(1.0 / base, scaling)
    return _yarn(base, width, theta, scaling) if scaling.rope_type == "yarn" else 1.0 / base


def attention_factor(scaling: RopeScaling) -> float:
    """What rotated queries and keys are multiplied by (Peng et al. 2023, section 3.4)."""
    if scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    factor, over, under = scaling.factor or 1.0, scaling.mscale, scaling.mscale_all_dim
    if over is not None and under is not None:
        return _mscale(factor, over) / _mscale(factor, under)
    return _mscale(factor)


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def _llama3(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies that turn less than `low` times in the old context are divided, more than `high` stay."""
    factor, old = scaling.factor, scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert factor is not None and old is not None and low is not None and high is not None
    wavelength = 2 * math.pi / frequency
    slow, fast = wavelength > old / low, wavelength < old / high
    divided = torch.where(slow, frequency / factor, frequency)
    smooth = (old / wavelength - low) / (high - low)
    between = (1 - smooth) * divided / factor + smooth * divided
    return torch.where(~slow & ~fast, between, divided)


def _yarn(base: Tensor, width: int, theta: float, scaling: RopeScaling) -> Tensor:
    """The same with a ramp over channels, between those that turn beta_fast and beta_slow times."""
    factor, old = scaling.factor, scaling.original_max_position_embeddings
    assert factor is not None and old is not None

    def channel(turns: float) -> float:
        return (width * math.log(old / (turns * 2 * math.pi))) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast or 32.0), channel(scaling.beta_slow or 1.0)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high = high + 0.001 if low == high else high
    kept = 1 - ((torch.arange(width // 2).float() - low) / (high - low)).clamp(0, 1)
    return 1.0 / (factor * base) * (1 - kept) + 1.0 / base * kept
