from __future__ import annotations

from typing import Any

import pytest

from llmkit.data.sources.retries import (
    MAX_RETRY_AFTER,
    RequestError,
    RetryPolicy,
    one_line,
    seconds_of,
    with_retries,
)
from llmkit.errors import RunFault, UserError


def test_errors_are_told_in_one_line_without_secrets() -> None:
    error = OSError("no route to\nhttps://user:p)a'ss@host/a.jsonl?sig=secret, url='s3://b/c?key=secret'")
    assert one_line(error) == "OSError: no route to https://host/a.jsonl url='s3://b/c"
    assert one_line(OSError()) == "OSError"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see [https://foo]", "OSError: see [https://foo]"),
        ("from https://user:pass]@host/a?sig=secret to x", "OSError: from https://... to x"),
    ],
)
def test_errors_with_broken_urls_are_told(text: str, expected: str) -> None:
    assert one_line(OSError(text)) == expected


class WithStatus(Exception):
    def __init__(self, status: int) -> None:
        self.status, self.headers = status, dict[str, str]()


class OfBotocore(Exception):
    def __init__(self, status: int) -> None:
        self.response: dict[str, Any] = {"ResponseMetadata": {"HTTPStatusCode": status}}


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
    assert RequestError.of(error).final == final


class Requests:
    """Fails so many times, then returns its number; keeps the seconds that it is waited for."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.made = errors, 0
        self.pauses: list[float] = []

    def __call__(self) -> int:
        self.made += 1
        if self.made <= len(self.errors):
            raise self.errors[self.made - 1]
        return self.made


def test_pauses_grow_and_differ_between_processes() -> None:
    made = []
    for _ in range(2):
        requests = Requests(*[OSError("reset")] * 8)
        assert with_retries(requests, RetryPolicy(8, first_delay=1.0), requests.pauses.append) == 9
        bounds = [1, 2, 4, 8, 16, 30, 30, 30]
        assert all(most / 2 <= pause <= most for pause, most in zip(requests.pauses, bounds, strict=True))
        made.append(requests.pauses)
    assert made[0] != made[1]


def test_the_last_failure_says_how_many_there_were() -> None:
    requests = Requests(*[OSError("reset")] * 3)
    with pytest.raises(RequestError, match=r"^OSError: reset$") as failure:
        with_retries(requests, RetryPolicy(2), requests.pauses.append)
    assert (failure.value.attempts, requests.made, len(requests.pauses)) == (3, 3, 2)


def test_what_no_attempt_mends_is_not_tried_again() -> None:
    for error in (WithStatus(404), UserError("no"), RunFault("no"), RequestError("no", final=True)):
        requests = Requests(error)
        with pytest.raises((RequestError, UserError, RunFault)):
            with_retries(requests, RetryPolicy(), requests.pauses.append)
        assert requests.made == 1 and not requests.pauses


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("86400", MAX_RETRY_AFTER), ("0", 0.001)])
def test_a_server_that_asks_for_time_gets_it(asked: str, waited: float) -> None:
    busy, slow = WithStatus(429), OfBotocore(503)
    busy.headers = {"Retry-After": asked}
    slow.response["ResponseMetadata"]["HTTPHeaders"] = {"retry-after": asked}
    requests = Requests(busy, made_of(slow, OSError("slow down")))
    assert with_retries(requests, RetryPolicy(2, first_delay=0.001), requests.pauses.append) == 3
    assert requests.pauses == pytest.approx([waited, waited], abs=0.002)


@pytest.mark.parametrize("header", [None, "", "Wed, 21 Oct 2026 07:28:00 GMT", "-5"])
def test_other_headers_ask_for_nothing(header: str | None) -> None:
    assert seconds_of(header) == 0.0
