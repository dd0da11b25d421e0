"""The worker with sessions that are told what to give."""

from __future__ import annotations

import queue

import pytest

from llmkit.errors import UserError
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import Token
from llmkit.generation.text import Piece
from llmkit.prompts import Prompt
from llmkit.serve.asks import Ask
from llmkit.serve.errors import ApiError
from llmkit.serve.worker import MOST_WAITING, Job, Worker
from tests.limits import HANG


class Scripted:
    """Gives each answer `max_new_tokens` pieces; a step takes a ticket and raises it if it is an error."""

    def __init__(self, tickets: queue.Queue) -> None:
        self.tickets, self.left, self.keys, self.most = tickets, {}, 0, 0
        self.dropped: list[int] = []

    def add(self, prompt, max_new_tokens, sampling, *, stops, logprobs) -> int:
        self.left[self.keys] = max_new_tokens
        self.keys += 1
        self.most = max(self.most, len(self.left))
        return self.keys - 1

    def drop(self, key: int) -> None:
        del self.left[key]
        self.dropped.append(key)

    def step(self):
        ticket = self.tickets.get(timeout=HANG)
        if isinstance(ticket, Exception):
            raise ticket
        found = []
        for key in list(self.left):
            self.left[key] -= 1
            end = None if self.left[key] else "length"
            if end:
                del self.left[key]
            found.append((key, Piece(f"{key} ", Token(0), end)))
        return found


class Case:
    def __init__(self, rows: int = 2) -> None:
        self.tickets: queue.Queue = queue.Queue()
        self.sessions: list[Scripted] = []
        self.emitted: queue.Queue = queue.Queue()
        self.worker = Worker(self.make, rows)

    def make(self) -> Scripted:
        self.sessions.append(Scripted(self.tickets))
        return self.sessions[-1]

    def job(self, *lengths: int) -> Job:
        asks = [Ask(Prompt("", [0], frozenset()), length, Sampling()) for length in lengths]
        job = Job(asks, lambda number, item: self.emitted.put((job, number, item)))
        return job

    def next(self):
        return self.emitted.get(timeout=HANG)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.tickets.put(None)


@pytest.fixture
def case():
    made = Case()
    yield made
    made.worker.close()
    made.step()
    if made.worker._thread.ident is not None:
        made.worker.join()


def test_answers_begin_when_there_is_room_and_end_on_their_own(case):
    job, other = case.job(1, 3, 2), case.job(1)
    case.worker.submit(job)
    case.worker.submit(other)
    case.worker.start()
    case.step(10)
    found = [case.next() for _ in range(7)]
    order = [(each is job, number, item.end) for each, number, item in found]
    # Two rows: answer 2 takes the place of 0, the other job's that of 1 and 2.
    assert order == [
        (True, 0, "length"), (True, 1, None),
        (True, 1, None), (True, 2, None),
        (True, 1, "length"), (True, 2, "length"),
        (False, 0, "length"),
    ]  # fmt: skip
    assert case.sessions[0].most == 2


def test_cancelled_jobs_are_dropped_or_never_begun(case):
    running, waiting, last = case.job(5, 5), case.job(5), case.job(1)
    for job in (running, waiting, last):
        case.worker.submit(job)
    case.worker.start()
    case.step()
    case.next(), case.next()
    running.cancelled = waiting.cancelled = True
    case.step(2)  # one may be for the step that was at work already
    job, number, piece = case.next()
    assert (job is last, number, piece.end) == (True, 0, "length")
    assert case.sessions[0].dropped == [0, 1] and case.sessions[0].keys == 3


def test_an_error_ends_what_is_at_work_and_the_next_has_a_new_session(case, capsys):
    first, second = case.job(3, 3), case.job(1)
    case.worker.submit(first)
    case.worker.submit(second)
    case.tickets.put(RuntimeError("out of memory"))
    case.worker.start()
    errors = [case.next() for _ in range(2)]
    assert all(job is first and error.status == 500 for job, _, error in errors)
    assert "out of memory" not in str(errors[0][2])
    case.step()
    assert case.next()[0] is second
    assert len(case.sessions) == 2
    assert "RuntimeError: out of memory" in capsys.readouterr().err
    case.worker.submit(first)
    case.tickets.put(UserError("the model has diverged"))
    assert "the model has diverged" in str(case.next()[2])
    assert capsys.readouterr().err == ""


def test_too_many_waiting_answers_are_refused(case):
    full = case.job(*[1] * MOST_WAITING)
    case.worker.submit(full)
    with pytest.raises(ApiError) as found:
        case.worker.submit(case.job(1))
    assert (found.value.status, found.value.code) == (429, "queue_full")
    with pytest.raises(ApiError, match="257 answers") as found:
        case.worker.submit(case.job(*[1] * (MOST_WAITING + 1)))
    assert found.value.status == 400
    full.cancelled = True
    case.worker.submit(case.job(1))


def test_closing_ends_all_answers_with_an_error(case):
    job = case.job(9, 9, 9)
    case.worker.submit(job)
    case.worker.start()
    case.step()
    case.next(), case.next()
    case.worker.close()
    case.step()
    failed: set[int] = set()
    while len(failed) < 3:  # pieces of a step that was at work already may come first
        _, number, item = case.next()
        failed |= {number} if isinstance(item, ApiError) else set()
    with pytest.raises(ApiError, match="stopping"):
        case.worker.submit(job)
