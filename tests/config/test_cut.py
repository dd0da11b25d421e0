"""What a tensor-parallel group cannot share is told by the name of the setting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.config.cut import check_cut
from llmkit.errors import UserError
from tests.shapes import LLAMA_STYLE

SHAPE = replace(LLAMA_STYLE, num_attention_heads=8, num_key_value_heads=2, head_dim=6, intermediate_size=72)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_divides_is_accepted(size):
    check_cut(SHAPE, size, 32, sequence_parallel=True)
    check_cut(replace(SHAPE, vocab_size=101, padded_vocab_size=101), size, 33, sequence_parallel=False)


@pytest.mark.parametrize(
    ("changes", "size", "length", "names"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 1}, 4, 32, "model.num_attention_heads 6"),
        ({"intermediate_size": 70}, 4, 32, "model.intermediate_size 70"),
        ({"num_attention_heads": 12, "num_key_value_heads": 6}, 4, 32, "model.num_key_value_heads 6"),
        ({"head_dim": 10, "num_key_value_heads": 1}, 4, 32, "model.head_dim 10"),
        ({}, 4, 30, "data.sequence_length 30"),
    ],
)
def test_what_does_not_divide_is_named(changes, size, length, names):
    with pytest.raises(UserError) as told:
        check_cut(replace(SHAPE, **changes), size, length, sequence_parallel=True)
    assert names in str(told.value) and f"parallel.tensor_parallel_size {size}" in str(told.value)
