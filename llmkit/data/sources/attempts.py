"""One attempt at something that a store or the network may refuse, and whether another is worth it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TypeVar

from llmkit.data.sources.urls import without_secrets
from llmkit.errors import RunFault, UserError

Value = TypeVar("Value")

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of HTTP that may pass."""
MISSING = frozenset({404, 410})
"""Statuses of HTTP that say that there is no such file."""
_FINAL = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
)
"""Errors of botocore, by name since it may not be installed."""


class FailedError(Exception):
    """An attempt that failed. final: another one would fail as well. missing: there is no such file."""

    def __init__(self, reason: str, final: bool, missing: bool = False) -> None:
        super().__init__(reason)
        self.final, self.missing = final, missing


class ChangedError(Exception):
    """The file is not the one that was listed."""


def attempt(function: Callable[[], Value]) -> Value:
    """What `function` returns; any error of a store or network becomes a FailedError.

    What is raised as a UserError or RunFault stays as it is.
    """
    try:
        return function()
    except (FailedError, ChangedError, UserError, RunFault):
        raise
    except Exception as error:
        status = status_of(error)
        final = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
        final = final or any(type(one).__name__ in _FINAL for one in _chain(error))
        # S3 calls it 400 where it waited too long for a request.
        final = final or (
            400 <= status < 600 and status not in TRANSIENT and not isinstance(error, TimeoutError)
        )
        missing = isinstance(error, FileNotFoundError) or status in MISSING
        raise FailedError(told(error), final, missing) from error


def patiently(
    function: Callable[[], Value], attempts: int = 4, first_delay: float = 0.5,
    sleep: Callable[[float], object] | None = None,
) -> Value:  # fmt: skip
    """What `function` returns; called again where another attempt may do better.

    first_delay: seconds before the second attempt; each later one waits twice as long, 30 s at most. sleep:
    waits so many seconds; by default this thread sleeps. Raises FailedError, that of the last attempt, and
    what `attempt` lets through.
    """
    for number in range(attempts):
        try:
            return attempt(function)
        except FailedError as error:
            if error.final or number == attempts - 1:
                raise
        (sleep or time.sleep)(min(30.0, first_delay * 2**number))
    raise AssertionError



def status_of(error: BaseException) -> int:
    """HTTP's status in an error of any library, or 0."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        if isinstance(answer, Mapping):  # of botocore; in requests and httpx it is an object
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp has the status itself
            status = getattr(one, "status", None) or getattr(answer, "status_code", None)
        if isinstance(status, int) and status:
            return status
    return 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was made of."""
    while error is not None:
        yield error
        error = error.__cause__


def in_thread(function: Callable[[], Value]) -> Future[Value]:
    """Runs in a thread that no one has to wait for, not even the end of the program."""
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="llmkit-fetch").start()
    return future


def told(error: BaseException) -> str:
    """An error in one line, without secrets in URLs."""
    text = without_secrets(" ".join(str(error).split()))
    name = type(error).__name__
    return f"{name}: {text:.300}" if text else name
