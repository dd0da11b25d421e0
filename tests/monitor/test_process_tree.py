"""A process and what it has started, which ends as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from llmkit.monitor.process_tree import descendants, kill_tree

SLEEPS = """
import subprocess, time
print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def test_children_with_a_session_of_their_own_are_found_and_killed(until: Callable[..., None]) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert descendants(parent.pid) == [child]
    assert child in descendants(os.getpid())
    kill_tree(parent.pid)
    assert parent.wait() == -9
    parent.stdout.close()
    until(lambda: not os.path.exists(f"/proc/{child}") or _is_dead(child))


def _is_dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True
