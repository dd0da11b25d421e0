"""Worker processes that make the parts of a source; what they make does not depend on how many they are."""

from __future__ import annotations

import contextlib
import json
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import NoReturn, Protocol

from llmkit.data.worker_process import WorkerProcess, stop_all
from llmkit.errors import RunFault, UserError

AHEAD = 2
"""Parts that a worker is given at a time: one to make, and one for when it is done."""
CLOSE_SECONDS = 10.0
"""Workers that have nothing to do end by themselves; after so long they are killed."""


class Maker(Protocol):
    """Makes parts by number; must be picklable."""

    def make(self, part: int) -> None:
        """Make a part; the result lies on the disk."""


def make_parts(
    maker: Maker, parts: Sequence[int], workers: int, done: Callable[[int], None] = lambda part: None
) -> Generator[int]:
    """Makes the parts, and gives their numbers in the given order, each when it is made.

    workers: processes, 0 = none but this one. done: is called with each part as soon as it is made, in any
    order. Raises what `maker.make` raises of UserError, RunFault and OSError, for the first such part in
    order, and RunFault where a worker is killed.
    """
    if workers == 0:
        for part in parts:
            maker.make(part)
            done(part)
            yield part
        return
    pool = [_Worker() for _ in range(min(workers, len(parts)))]
    patience = 0.0
    try:
        for worker in pool:
            worker.start()
        for worker in pool:
            worker.send(maker)
        yield from _serve(pool, parts, done)
        patience = CLOSE_SECONDS
    finally:
        stop_all(pool, patience)


def _serve(pool: list[_Worker], parts: Sequence[int], done: Callable[[int], None]) -> Iterator[int]:
    waiting, made, failed = deque(parts), set[int](), dict[int, dict[str, str]]()
    for part in parts:
        while part not in made:
            if part in failed:
                _raise(failed[part])
            for worker in pool:
                while waiting and not failed and len(worker.given) < AHEAD:
                    worker.ask(waiting.popleft())
            for pipe in wait([worker.pipe for worker in pool if worker.given]):
                worker = next(one for one in pool if one.pipe is pipe)
                number, error = worker.answer()
                if error is not None:
                    failed[number] = error
                else:
                    made.add(number)
                    done(number)
        made.remove(part)
        yield part


class _Worker(WorkerProcess):
    """A worker process. given: parts that it has not answered for yet."""

    def __init__(self) -> None:
        super().__init__(_work, "tokenize")
        self.given: list[int] = []

    def ask(self, part: int) -> None:
        self.given.append(part)
        with contextlib.suppress(OSError):  # a worker that is gone is noticed when it should answer
            self.pipe.send_bytes(json.dumps(part).encode())

    def answer(self) -> tuple[int, dict[str, str] | None]:
        """A part that it was given, and the error if it could not be made."""
        try:
            number, error = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            code = self.exit_code(CLOSE_SECONDS)
            why = "most often a lack of memory" if code == -signal.SIGKILL else "it may have said why above"
            raise RunFault(
                f"a process that tokenizes ended with exit code {code} ({why}); run the same command again, "
                "maybe with fewer --workers: parts that are made are kept"
            ) from None
        self.given.remove(number)
        return number, error


def _raise(error: dict[str, str]) -> NoReturn:
    kinds: dict[str, type[Exception]] = {"UserError": UserError, "RunFault": RunFault}
    if error["kind"] == "OSError":
        raise OSError(int(error["number"]), error["message"])
    raise kinds.get(error["kind"], RuntimeError)(error["message"])


def _work(pipe: Connection) -> None:
    """A worker's life: parts come, answers go, until the parent closes the pipe."""
    maker: Maker = pipe.recv()
    while True:
        part = json.loads(pipe.recv_bytes())
        pipe.send_bytes(json.dumps([part, _make(maker, part)]).encode())


def _make(maker: Maker, part: int) -> dict[str, str] | None:
    try:
        maker.make(part)
    except (UserError, RunFault) as error:
        return {"kind": type(error).__name__, "message": str(error)}
    except OSError as error:
        return {"kind": "OSError", "number": str(error.errno or 0), "message": error.strerror or str(error)}
    except Exception:
        return {"kind": "fault", "message": f"part {part} of a source:\n{traceback.format_exc()}"}
    return None
