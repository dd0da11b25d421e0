"""Sliding windows in a config.json: which layers have one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkit.config.shape import ModelShape
from llmkit.hf.config_json import ConfigKeys

FULL, SLIDING = "full_attention", "sliding_attention"


def read_windows(keys: ConfigKeys, types: Sequence[str], window: int | None, layers: int) -> dict[str, Any]:
    """The settings sliding_window and layer_types.

    types: of all layers, by name. window: of those that slide.
    """
    listed = isinstance(types, list) and all(each in (FULL, SLIDING) for each in types)
    if not listed or len(types) != layers:
        keys.refuse("layer_types", types, f"{layers} of {FULL} and {SLIDING} are expected")
        return {}
    if SLIDING in types and window is None:
        keys.refuse("sliding_window", window, f"there are layers with {SLIDING}")
    if SLIDING not in types:
        return {"sliding_window": None, "layer_types": None}
    return {"sliding_window": window, "layer_types": types if FULL in types else None}


def layer_types(shape: ModelShape) -> list[str]:
    """The types of all layers."""
    return [FULL if shape.window(layer) is None else SLIDING for layer in range(shape.num_hidden_layers)]
