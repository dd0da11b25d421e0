from __future__ import annotations

import pytest

from llmkit.data.sources.attempts import FailedError, attempt, told


def test_errors_are_told_in_one_line_without_secrets() -> None:
    error = OSError("no route to\nhttps://user:p)a'ss@host/a.jsonl?sig=secret, url='s3://b/c?key=secret'")
    assert told(error) == "OSError: no route to https://host/a.jsonl url='s3://b/c"
    assert told(OSError()) == "OSError"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see [https://foo]", "OSError: see [https://foo]"),
        ("from https://user:pass]@host/a?sig=secret to x", "OSError: from https://... to x"),
    ],
)
def test_errors_with_broken_urls_are_told(text: str, expected: str) -> None:
    assert told(OSError(text)) == expected


class WithStatus(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class OfBotocore(Exception):
    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class NoCredentialsError(Exception):
    """Bears the name of botocore's."""


def made_of(cause: Exception, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (WithStatus(404), True),
        (WithStatus(403), True),
        (WithStatus(429), False),
        (WithStatus(503), False),
        (made_of(OfBotocore(400), OSError("bad request")), True),
        (made_of(OfBotocore(503), OSError("slow down")), False),
        (made_of(OfBotocore(400), TimeoutError("waited for the request")), False),
        (NoCredentialsError(), True),
        (OSError("reset"), False),
        (TimeoutError(), False),
        (FileNotFoundError("gone"), True),
        (PermissionError("no"), True),
    ],
)
def test_only_what_may_pass_is_worth_another_attempt(error: Exception, final: bool) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(FailedError) as failure:
        attempt(fail)
    assert failure.value.final == final
