from __future__ import annotations

import pytest

from llmkit.data.sources.urls import is_url, redact_url


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/a.jsonl", "/data/a.jsonl"),
        ("https://user:pass@host:8080/d/a.jsonl?sig=secret#part", "https://host:8080/d/a.jsonl"),
        ("s3://bucket/a.jsonl", "s3://bucket/a.jsonl"),
        ("https://[bad/a.jsonl?sig=secret", "https://[bad/a.jsonl"),
        ("https://user:[pass@host/a.jsonl?sig=secret", "https://..."),
        ("https://[user:pa?ss@host/a.jsonl", "https://..."),
        ("zip://a.jsonl::https://user:pass@host/a.zip?sig=secret", "zip://a.jsonl::https://host/a.zip"),
    ],
)
def test_paths_are_shown_without_secrets(path: str, expected: str) -> None:
    assert redact_url(path) == expected


def test_a_url_has_a_scheme() -> None:
    assert is_url("https://host/a") and is_url("s3://b/a") and is_url("memory://a")
    assert not is_url("/data/a") and not is_url("data/a") and not is_url("a:b") and not is_url("://a")
