"""Rotary positions in a config.json: as transformers 5 writes them, and as transformers 4 does."""

from __future__ import annotations

from typing import Any

from llmkit.config.model_rules import ROPE_SETTINGS
from llmkit.config.shape import ModelShape
from llmkit.hf.config_json import ConfigKeys

THETA = 10000.0
"""Base of the frequencies where a config.json has none, in most classes."""


def read_rope(
    keys: ConfigKeys, longest: int, share: float | None = None, default_theta: float = THETA
) -> dict[str, Any]:
    """The settings of rotary positions in a config.json. longest: its max_position_embeddings.

    default_theta: where the file has no base.

    share: of a head's channels, which are rotated where the file does not say how many; None: the class
    rotates all of them, and a file that says otherwise is refused.

    transformers 5: `rope_parameters`, which hold all; transformers 4: `rope_scaling`, with `rope_theta` and
    `partial_rotary_factor` beside it. As in transformers, `rope_scaling` wins, and what is inside wins over
    what is beside it.
    """
    newer, older = keys.take("rope_parameters"), keys.take("rope_scaling")
    theta, beside = keys.take("rope_theta"), keys.take("partial_rotary_factor")
    name = "rope_scaling" if older else "rope_parameters"
    found = older or newer or {}
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        keys.refuse(name, found, "rotary positions that differ between layers are not supported here")
        return {}
    found = dict(found)
    inner_theta, inner_share = found.pop("rope_theta", None), found.pop("partial_rotary_factor", None)
    rotated = next(value for value in (inner_share, beside, share, 1.0) if value is not None)
    if share is None and rotated != 1.0:
        keys.refuse("partial_rotary_factor", rotated, "this class rotates all channels of a head")
    partial = {} if share is None else {"partial_rotary_factor": rotated}
    theta = next(value for value in (inner_theta, theta, default_theta) if value is not None)
    return {"rope_theta": theta, **partial, **read_scaling(keys, name, found, longest)}


def read_scaling(keys: ConfigKeys, name: str, found: dict[str, Any], longest: int) -> dict[str, Any]:
    """The setting rope_scaling, if any, of an object with `rope_type` or, in older files, `type`.

    name: of the key that holds it. longest: see `read_rope`.
    """
    found = dict(found)
    kind, legacy = found.pop("rope_type", None), found.pop("type", None)
    kind = kind or legacy or "default"
    if kind not in ROPE_SETTINGS:
        keys.refuse(f"{name}.rope_type", kind, f"supported are {', '.join(ROPE_SETTINGS)}")
        return {}
    known = ROPE_SETTINGS[kind]
    if "original_max_position_embeddings" in known:
        found.setdefault("original_max_position_embeddings", longest)
    for key, value in found.items():
        if key not in known and value is not None:
            keys.refuse(f"{name}.{key}", value, f"rotary positions of type {kind} have no such setting here")
    if kind == "default":
        return {}
    return {"rope_scaling": {"rope_type": kind, **{key: found[key] for key in known if key in found}}}


def write_rope(shape: ModelShape) -> dict[str, Any]:
    """The keys that say the same to transformers 4 and 5."""
    scaled = shape.rope_scaling.rope_type != "default"
    scaling = shape.rope_scaling.model_dump(exclude_none=True) if scaled else None
    return {"rope_theta": shape.rope_theta, "rope_scaling": scaling}
