from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.sources.fetch import FailedError, attempt, head_of_info, is_url, shown, told


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/a.jsonl", "/data/a.jsonl"),
        ("https://user:pass@host:8080/d/a.jsonl?sig=secret#part", "https://host:8080/d/a.jsonl"),
        ("s3://bucket/a.jsonl", "s3://bucket/a.jsonl"),
        ("zip://a.jsonl::https://user:pass@host/a.zip?sig=secret", "zip://a.jsonl::https://host/a.zip"),
    ],
)
def test_paths_are_shown_without_secrets(path: str, expected: str) -> None:
    assert shown(path) == expected


def test_errors_are_told_in_one_line_without_secrets() -> None:
    error = OSError("no route to\nhttps://user:p)a'ss@host/a.jsonl?sig=secret, url='s3://b/c?key=secret'")
    assert told(error) == "OSError: no route to https://host/a.jsonl url='s3://b/c"
    assert told(OSError()) == "OSError"


def test_a_url_has_a_scheme() -> None:
    assert is_url("https://host/a") and is_url("s3://b/a") and is_url("memory://a")
    assert not is_url("/data/a") and not is_url("data/a") and not is_url("a:b") and not is_url("://a")


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


@pytest.mark.parametrize(
    ("info", "tag"),
    [
        ({"ETag": '"x"', "LastModified": "today"}, '"x"'),
        ({"blob_id": "b", "xet_hash": "h"}, "b"),
        ({"blob_id": None, "mtime": 5}, "5"),
        ({}, ""),
    ],
)
def test_a_file_is_known_by_the_best_that_its_store_tells(info: dict[str, Any], tag: str) -> None:
    assert head_of_info({"size": 7, **info}) == (7, tag)


def test_a_store_must_tell_the_size() -> None:
    with pytest.raises(FailedError, match="does not tell the file's size"):
        head_of_info({"size": None})
