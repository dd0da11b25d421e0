"""Which layers have a window."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.errors import UserError
from llmkit.hf.config_json import ConfigKeys
from llmkit.hf.windows import FULL, SLIDING, layer_types, read_windows
from tests.shapes import LLAMA_STYLE


def read(types, window, layers=3):
    keys = ConfigKeys({}, "m/config.json")
    found = read_windows(keys, types, window, layers)
    keys.finish()
    return found


def test_layers_that_are_alike_need_no_list():
    assert read([FULL] * 3, 7) == {"sliding_window": None, "layer_types": None}
    assert read([SLIDING] * 3, 7) == {"sliding_window": 7, "layer_types": None}
    assert read([SLIDING, FULL, FULL], 7) == {"sliding_window": 7, "layer_types": [SLIDING, FULL, FULL]}


@pytest.mark.parametrize(
    ("types", "window", "says"),
    [
        ([FULL] * 2, None, "3 of full_attention and sliding_attention are expected"),
        (["chunked_attention", FULL, FULL], 7, "chunked_attention"),
        ([[FULL], FULL, FULL], 7, "full_attention"),
        ([SLIDING] * 3, None, "sliding_window = null"),
    ],
)
def test_types_that_are_not_known_are_refused(types, window, says):
    with pytest.raises(UserError, match=says):
        read(types, window)


def test_a_pattern_that_repeats_is_written_in_full():
    shape = replace(LLAMA_STYLE, num_hidden_layers=5, sliding_window=7, layer_types=(SLIDING, FULL))
    assert layer_types(shape) == [SLIDING, FULL, SLIDING, FULL, SLIDING]
