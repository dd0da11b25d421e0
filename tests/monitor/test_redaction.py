"""Nothing that gives access leaves this machine."""

from __future__ import annotations

import pytest

from llmkit.monitor.redaction import Redactor

KEY = "c0ffee0123456789" * 2 + "01234567"
REDACTOR = Redactor(
    {"HF_TOKEN": "canary-of-the-hub", "WANDB_API_KEY": KEY, "SHORT_TOKEN": "word", "PATH": "/usr/bin"}
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host.example/data.jsonl", "https://host.example/data.jsonl"),
        ("see s3://a:b@bucket/x, please", "see s3://bucket/x, please"),
        ("https://host/x.gz?X-Amz-Signature=abcd&y=1", "https://host/x.gz?... (not shown)"),
        ("https://host/x?page=2", "https://host/x?page=2"),
        ("401 for canary-of-the-hub at once", "401 for ... (not shown) at once"),
        (f"key {KEY}!", "key ... (not shown)!"),
        ("token hf_abcdefghijklmnop", "token ... (not shown)"),
        ("a word of /usr/bin", "a word of /usr/bin"),
    ],
)
def test_what_gives_access_is_taken_out_of_a_text(text: str, shown: str) -> None:
    assert REDACTOR.text(text) == shown


def test_values_are_redacted_at_any_depth_and_hashes_stay() -> None:
    commit = "ab" * 20
    value = {
        "data": {"sources": [{"path": "https://u:p@host/x", "revision": commit}]},
        "api_key": "whatever",
        "numbers": [1, 2.5, None, True],
        "token": None,
    }
    assert REDACTOR.value(value) == {
        "data": {"sources": [{"path": "https://host/x", "revision": commit}]},
        "api_key": "... (not shown)",
        "numbers": [1, 2.5, None, True],
        "token": None,
    }
