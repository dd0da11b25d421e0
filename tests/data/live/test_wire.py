from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.live.stream import Row
from llmkit.data.live.wire import pack, unpack
from llmkit.errors import RunFault, UserError

counts = st.dictionaries(st.text(max_size=5), st.integers(1, 9), max_size=2)


@settings(max_examples=25)
@given(
    tokens=st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=40),
    masked=st.booleans(),
    cursor=st.lists(st.integers(0, 2**60), min_size=6, max_size=6),
    left_out=counts,
    notes=st.lists(st.text(max_size=5), max_size=2),
)
def test_a_row_comes_as_it_was_sent(
    tokens: list[int], masked: bool, cursor: list[int], left_out: dict[str, int], notes: list[str]
) -> None:
    targets = np.array(tokens[1:]) % 3 != 0 if masked else None
    row = Row(np.array(tokens, dtype=np.int32), targets, cursor, left_out, tuple(notes))
    for wanted in (True, False):
        again = unpack(pack(row), wanted)
        assert isinstance(again, Row)
        assert again[2:] == row[2:]
        assert again.tokens.dtype == np.int32
        assert again.tokens.tolist() == (tokens if wanted else [])
        assert (again.targets is None) == (targets is None or not wanted)
        if again.targets is not None and targets is not None:
            assert (again.targets == targets).all()


@pytest.mark.parametrize("error", [UserError("a mistake"), RunFault("a fault"), RuntimeError("a bug")])
def test_an_error_keeps_its_kind_and_its_words(error: Exception) -> None:
    again = unpack(pack(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
