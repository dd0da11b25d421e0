"""A model gets the first layout that fits, or a message that says what is missing."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.recipes.devices import Device, device
from llmkit.recipes.layout import fitting_layout
from llmkit.recipes.rules import Text, by_depth


def layout(depth: int, on: Device, gpus: int, length: int = 2048) -> dict:
    shape = by_depth(depth, Text(32768, length)).shape
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": length},
        "train": {"max_steps": 10},
    }
    return {name: setting.value for name, setting in fitting_layout("run", shape, settings, on, gpus).items()}


def test_a_small_model_needs_nothing():
    assert layout(12, device("h100"), 8) == {}
    assert layout(12, device("l4"), 1) == {}


def test_state_is_shared_where_a_copy_each_does_not_fit():
    found = layout(48, device("h100"), 64)
    assert found["zero_stage"] in (1, 3)


def test_long_rows_are_recomputed():
    assert layout(12, device("l4"), 1, 49152).get("activation_checkpointing") in ("selective", "full")


def test_what_fits_nowhere_is_told_with_what_it_needs():
    with pytest.raises(
        UserError, match=r"run, of 1.*M parameters, does not fit: .* GiB at least .*l4 has 21"
    ):
        layout(64, device("l4"), 1)
    with pytest.raises(UserError, match="ZeRO stage 3"):
        layout(120, device("l4"), 2)
