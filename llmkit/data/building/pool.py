"""Worker processes that make the parts of a source.

They are spawned, so they share nothing with their parent but what they are given, and end with it, however
it ends. What they make does not depend on how many they are.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import NoReturn, Protocol

from llmkit.errors import RunFault, UserError

AHEAD = 2
"""Parts that a worker is given at a time: one to make, and one for when it is done."""


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
    with contextlib.ExitStack() as stack:
        pool = [stack.enter_context(_Worker(maker)) for _ in range(min(workers, len(parts)))]
        yield from _serve(pool, parts, done)


def _serve(pool: list[_Worker], parts: Sequence[int], done: Callable[[int], None]) -> Iterator[int]:
    waiting, made, failed = deque(parts), set[int](), dict[int, dict[str, str]]()
    for part in parts:
        while part not in made:
            if part in failed:
                _raise(failed[part])
            for worker in pool:
                while waiting and not failed and len(worker.given) < AHEAD:
                    worker.give(waiting.popleft())
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


class _Worker:
    """A worker process. given: parts that it has not answered for yet."""

    def __init__(self, maker: Maker) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.given: list[int] = []
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        # Not as an argument: `start` would wait for ever to hand it over to a process that died at once.
        with contextlib.suppress(OSError):
            self.pipe.send(maker)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.pipe.close()
        if error[0] is not None:
            self._process.kill()
        self._process.join()

    def give(self, part: int) -> None:
        self.given.append(part)
        with contextlib.suppress(OSError):  # a worker that is gone is noticed when it should answer
            self.pipe.send_bytes(json.dumps(part).encode())

    def answer(self) -> tuple[int, dict[str, str] | None]:
        """A part that it was given, and the error if it could not be made."""
        try:
            number, error = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
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
    """A worker's life: parts come, answers go, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
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


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
