"""Nothing that gives access leaves this machine."""

from __future__ import annotations

import pytest

from llmkit.config.redaction import Redactor, command_on_record

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


def test_a_command_is_kept_without_what_gives_access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-the-hub")
    command = ["tool", "--wandb-key", "hunter2", "--token=hunter2", "canary-of-the-hub", "a=s3://u:hunter2@b/c"]
    shown = command_on_record([*command, "train.max_steps=3", "--quiet", "x"])
    assert "hunter2" not in str(shown) and "canary" not in str(shown)
    assert [shown[0], *shown[-3:]] == ["tool", "train.max_steps=3", "--quiet", "x"]
