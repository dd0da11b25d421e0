"""Which requests to a store or web server are made again, how often, and after how long."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from llmkit.data.sources.urls import redact_urls
from llmkit.errors import RunFault, UserError

Value = TypeVar("Value")

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same request may succeed."""
MISSING = frozenset({404, 410})
"""HTTP statuses that say that there is no such file."""
MAX_DELAY, MAX_RETRY_AFTER = 30.0, 120.0
"""Seconds between two attempts, at most: by the policy, and where the server asks for more."""
_FINAL = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
)
"""Errors of botocore, by name since it may not be installed."""


class RetryPolicy(NamedTuple):
    """retries: attempts after the first. first_delay: seconds before the second; each later one waits twice
    as long, MAX_DELAY at most. stall_seconds: an attempt that receives no byte for so long has failed."""

    retries: int = 5
    first_delay: float = 1.0
    stall_seconds: float = 30.0


class RequestError(Exception):
    """A request that failed.

    final: another attempt would fail as well. missing: there is no such file. retry_after: seconds that the
    server wants to be left alone. attempts: made of it.
    """

    def __init__(
        self, reason: str, final: bool, missing: bool = False, retry_after: float = 0.0, attempts: int = 1
    ) -> None:
        super().__init__(reason)
        self.final, self.missing, self.retry_after, self.attempts = final, missing, retry_after, attempts

    @classmethod
    def of(cls, error: Exception) -> RequestError:
        """An error of a store's library, as one of these."""
        if isinstance(error, RequestError):
            return error
        status, headers = http_answer(error)
        if status and not isinstance(error, TimeoutError):  # S3 says 400 where it waited too long
            final = status >= 400 and status not in TRANSIENT
        else:
            final = any(type(cause).__name__ in _FINAL for cause in _causes(error))
        final = final or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
        missing = isinstance(error, FileNotFoundError) or status in MISSING
        failed = cls(one_line(error), final, missing, seconds_of(headers.get("retry-after")))
        failed.__cause__ = error
        return failed


def with_retries(
    request: Callable[[], Value], policy: RetryPolicy, wait: Callable[[float], object] | None = None
) -> Value:
    """What `request` returns; called again, by the policy, where another attempt may succeed.

    wait: called with the seconds before the next attempt; by default, this thread sleeps.
    Raises RequestError, that of the last attempt; UserError and RunFault pass through.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return request()
        except (UserError, RunFault):
            raise
        except Exception as error:
            failed = RequestError.of(error)
            if failed.final or attempt > policy.retries:
                failed.attempts = attempt
                raise failed from failed.__cause__
        delay = min(MAX_DELAY, policy.first_delay * 2 ** (attempt - 1))
        # Jitter, so that processes that a server turned away do not all come back at once.
        delay *= random.SystemRandom().uniform(0.5, 1.0)
        (wait or time.sleep)(max(delay, min(MAX_RETRY_AFTER, failed.retry_after)))


def http_answer(error: BaseException) -> tuple[int, Mapping[str, str]]:
    """HTTP status and headers in an error of any library, or in what caused it; 0 where there is none."""
    for cause in _causes(error):
        answer = getattr(cause, "response", None)
        if isinstance(answer, Mapping):  # of botocore
            metadata = answer.get("ResponseMetadata", {})
            status, headers = metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders")
        else:  # aiohttp has both in the error itself, requests and httpx in its answer
            status = getattr(cause, "status", None) or getattr(answer, "status_code", None)
            headers = getattr(cause, "headers", None) or getattr(answer, "headers", None)
        if isinstance(status, int) and status:
            return status, {str(name).lower(): str(value) for name, value in (headers or {}).items()}
    return 0, {}


def seconds_of(retry_after: str | None) -> float:
    """Seconds by a Retry-After header; 0 without one, and for a date.

    >>> seconds_of("120")
    120.0
    """
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__


def in_thread(function: Callable[[], Value]) -> Future[Value]:
    """Runs in a daemon thread: one that hangs in a dead store does not keep the program alive."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="llmkit-fetch").start()
    return future


def one_line(error: BaseException) -> str:
    """An error in one line, without secrets in URLs."""
    text = redact_urls(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text:.300}" if text else type(error).__name__
