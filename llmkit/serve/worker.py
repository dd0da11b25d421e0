"""The thread that owns the model and answers all requests together."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llmkit.errors import UserError
from llmkit.generation.session import Token
from llmkit.generation.text import Piece, TextSession
from llmkit.serve.asks import Ask
from llmkit.serve.errors import ApiError

MOST_WAITING = 256
"""Answers that may wait until others have ended; more are refused."""


@dataclass(frozen=True)
class Scores:
    """The ids of a prompt with their log-probabilities. end: "length" where no answer follows."""

    tokens: Sequence[Token]
    end: Literal["length"] | None


@dataclass(eq=False)
class Job:
    """The answers of one request.

    emit: called in the worker's thread with the number of an ask and a piece of its answer; before the first
    one with the scores of its prompt, if it asks for them. The last item has an `end`, or is an error, after
    which nothing follows for that ask. cancelled: set from anywhere when nobody waits for the answers any
    more.
    """

    asks: Sequence[Ask]
    emit: Callable[[int, Piece | Scores | ApiError], None]
    cancelled: bool = False

    def send(self, number: int, item: Piece | Scores | ApiError) -> None:
        """Emits the item if anybody waits for it."""
        if not self.cancelled:
            self.emit(number, item)


class Worker:
    """Answers jobs in the order they come, up to `most_rows` answers at the same time.

    An answer begins between two tokens of the others, and leaves its place to the next as soon as it has
    ended or been cancelled. make_session: makes an empty session; called in the worker's thread, anew after
    each error. score: of a prompt, as `prompt_scores`; needed only for asks that want it.
    """

    def __init__(
        self,
        make_session: Callable[[], TextSession],
        most_rows: int,
        score: Callable[[Sequence[int], int], Sequence[Token]] | None = None,
    ) -> None:
        self._make_session, self._most_rows, self._score = make_session, most_rows, score
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Job, int]] = deque()
        # Of the worker's thread alone: what is to begin, and what is at work, by the session's key.
        self._chosen: deque[tuple[Job, int]] = deque()
        self._running: dict[int, tuple[Job, int]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="llmkit-serve", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Takes a job. Raises ApiError where it, or the queue, is too long, or the server ends."""
        with self._changed:
            if self._closed:
                raise _stopping()
            self._waiting = deque(each for each in self._waiting if not each[0].cancelled)
            if len(job.asks) > MOST_WAITING:
                raise ApiError(f"the request is for {len(job.asks)} answers; at most {MOST_WAITING} are made")
            if len(self._waiting) + len(job.asks) > MOST_WAITING:
                raise ApiError(
                    f"{len(self._waiting)} answers are waiting already; try again later",
                    status=429,
                    code="queue_full",
                )
            self._waiting.extend((job, number) for number in range(len(job.asks)))
            self._changed.notify()

    def close(self) -> None:
        """Ends all answers with an error; returns at once."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self) -> None:
        """Waits until the token at work is done and the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        session = self._make_session()
        while True:
            try:
                self._drop_cancelled(session)
                if not self._choose():
                    break
                self._begin(session)
                self._step(session)
            except Exception as error:
                self._fail(_reported(error))
                session = self._make_session()
        self._fail(_stopping())

    def _choose(self) -> bool:
        """Takes the answers to begin now; waits while there is nothing to do. False where the server ends."""
        with self._changed:
            while not (self._closed or self._waiting or self._running):
                self._changed.wait()
            if self._closed:
                return False
            while self._waiting and len(self._running) + len(self._chosen) < self._most_rows:
                job, number = self._waiting.popleft()
                if not job.cancelled:
                    self._chosen.append((job, number))
            return True

    def _drop_cancelled(self, session: TextSession) -> None:
        for key in [key for key, (job, _) in self._running.items() if job.cancelled]:
            session.drop(key)
            del self._running[key]

    def _begin(self, session: TextSession) -> None:
        while self._chosen:
            job, number = self._chosen[0]
            ask = job.asks[number]
            if ask.scored_from is not None:
                assert self._score is not None
                scores = self._score(ask.prompt.ids, ask.logprobs or 0)
                job.send(number, Scores(scores, None if ask.max_new_tokens else "length"))
            if not ask.max_new_tokens:
                self._chosen.popleft()
                continue
            key = session.add(
                ask.prompt, ask.max_new_tokens, ask.sampling, stops=ask.stops, logprobs=ask.logprobs
            )
            self._running[key] = self._chosen.popleft()

    def _step(self, session: TextSession) -> None:
        """Adds a token to all answers."""
        for key, piece in session.step():
            job, number = self._running[key]
            if piece.end is not None:
                del self._running[key]
            job.send(number, piece)

    def _fail(self, error: ApiError) -> None:
        """Ends the answers at work with an error; those that wait too, where the server ends."""
        ended = [*self._running.values(), *self._chosen]
        self._running.clear()
        self._chosen.clear()
        with self._changed:
            if self._closed:
                ended += self._waiting
                self._waiting.clear()
        for job, number in ended:
            job.send(number, error)


def _stopping() -> ApiError:
    return ApiError("the server is stopping", status=503, code="stopping")


def _reported(error: Exception) -> ApiError:
    """What clients get; the traceback of a bug goes to the server's standard error."""
    if isinstance(error, UserError):
        return ApiError(str(error), status=500)
    traceback.print_exception(error)
    return ApiError("the server failed; its output has the reason", status=500)
