from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from llmkit.data.state import Fingerprint, data_differences, read_data_state
from llmkit.errors import UserError

FINGERPRINT: dict[str, Any] = {
    "tokenizer": "aaaa",
    "sequence_length": 256,
    "document_masks": False,
    "sources": [
        {"name": "a", "kind": "shards", "tokens": 10, "digest": "x", "heldout": "h"},
        {"name": "b", "kind": "shards", "tokens": 20, "digest": "y", "heldout": None},
    ],
}
STATE: dict[str, Any] = {
    "version": 2,
    "rows": 640,
    "seed": 3,
    "start": 0,
    "carry": [0, 0],
    "numbers": [0, 1],
    "next_shuffle_id": 2,
    "cursors": [None, None],
    "segments": [[0, [1.0, 2.0]], [320, [1.0, 3.0]]],
    "fingerprint": FINGERPRINT,
}


def differences(now: dict[str, Any]) -> list[str]:
    return data_differences(read_data_state(STATE), Fingerprint.model_validate(now))


def test_another_chat_template_is_named_as_such() -> None:
    """By it the tokens differ, held-out ones too: that goes without saying."""
    old, new = copy.deepcopy(FINGERPRINT), copy.deepcopy(FINGERPRINT)
    old["sources"][0] |= {"template": "one"}
    new["sources"][0] |= {"template": "two", "tokens": 11, "digest": "z", "heldout": "g"}
    position = read_data_state(STATE | {"fingerprint": old})
    [difference] = data_differences(position, Fingerprint.model_validate(new))
    assert difference.startswith("source a has another chat template (data.tokenizer.chat_template, or")
    # A checkpoint of before did not note it.
    assert differences(new)[0] == "source a had 10 training tokens, has 11"


def test_the_same_data_goes_on() -> None:
    position = read_data_state(STATE)
    assert differences(copy.deepcopy(FINGERPRINT)) == []
    assert (position.rows, position.segments) == (640, [(0, [1.0, 2.0]), (320, [1.0, 3.0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(tokenizer="bbbb"), "data.tokenizer had hash aaaa, has bbbb"),
        (lambda f: f.update(sequence_length=512), "data.sequence_length was 256, is 512"),
        (lambda f: f.update(document_masks=True), "data.document_masks was False, is True"),
        (lambda f: f["sources"][1].update(tokens=21), "source b had 20 training tokens, has 21"),
        (lambda f: f["sources"][1].update(digest="z"), "source b has other text of the same length"),
        (lambda f: f["sources"][0].update(heldout="i"), "source a has other held-out text"),
        (lambda f: f["sources"][1].update(heldout="i"), "source b has other held-out text"),
        (
            lambda f: f["sources"][1].update(kind="live", tokens=None),
            "source b was read as shards, is as live",
        ),
        (lambda f: f["sources"].reverse(), "data.sources were a, b, are b, a"),
        (lambda f: f["sources"].pop(), "data.sources were a, b, are a"),
    ],
)
def test_each_difference_is_named(change: Callable[[dict[str, Any]], None], message: str) -> None:
    now = copy.deepcopy(FINGERPRINT)
    change(now)
    assert message in differences(now)


def test_all_differences_are_named() -> None:
    found = differences(FINGERPRINT | {"sequence_length": 512, "tokenizer": "bbbb"})
    assert found == ["data.tokenizer had hash aaaa, has bbbb", "data.sequence_length was 256, is 512"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version: Input should be 2 or 3"),
        ({"rows": -1}, "rows: Input should be greater than or equal to 0"),
        ({"segments": []}, "segments: List should have at least 1 item"),
        ({"segments": [[0, [1.0, -2.0]]]}, "segments.0.1.1: Input should be greater than or equal to 0"),
        ({"segments": [[5, [1.0, 2.0]]]}, r"segments start at \[5\]"),
        ({"segments": [[0, [1.0, 2.0]], [641, [1.0, 2.0]]]}, r"segments start at \[0, 641\]"),
        ({"segments": [[0, [1.0]]]}, "it has not one value a source"),
        ({"start": 5}, r"segments start at \[0, 320\]"),
        ({"carry": [0]}, "it has not one value a source"),
        ({"cursors": [None]}, "it has not one value a source"),
        ({"fingerprint": {}}, "fingerprint.tokenizer: Field required"),
    ],
)
def test_a_position_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"the checkpoint's data position is not usable: .*{message}"):
        read_data_state(STATE | change)
