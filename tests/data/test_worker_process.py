from __future__ import annotations

import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

from llmkit.data.worker_process import WorkerProcess, stop_all


def hang(pipe: Connection) -> None:
    pipe.send("here")
    time.sleep(3600)


def obey(pipe: Connection) -> None:
    while True:
        pipe.send(pipe.recv())


def test_one_that_hangs_is_killed_and_one_that_is_not_started_is_nothing_to_end() -> None:
    hanging, obeying, resting = WorkerProcess(hang, "h"), WorkerProcess(obey, "o"), WorkerProcess(obey, "r")
    with ExitStack() as stack:
        for helper in (hanging, obeying):
            helper.start()
            stack.callback(helper.kill)
        obeying.send("word" * 100_000)
        assert obeying.pipe.recv() == "word" * 100_000
        assert hanging.pipe.recv() == "here"
        stop_all([obeying], 100.0)
        stop_all([hanging, obeying, resting], 0.1)
        assert [one.exit_code(0.0) for one in (hanging, obeying)] == [-9, 0]


def test_all_are_asked_to_end_before_one_is_waited_for_and_share_the_time() -> None:
    waited: list[float] = []
    killed: list[WorkerProcess] = []

    class Hanging(WorkerProcess):
        pid = 1

        def exit_code(self, seconds: float) -> int | None:
            assert all(one.pipe.closed for one in helpers)
            waited.append(seconds)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass
            return None

        def kill(self) -> None:
            killed.append(self)

    helpers = [Hanging(obey, "h") for _ in range(3)]
    stop_all(helpers, 0.05)
    assert sum(waited) < 0.06
    assert killed == helpers
