"""The process that sends to Weights & Biases what it has not of a run that has ended: see `wandb_sync`.

Its last line on standard output is JSON: `done`, whether the server has everything now; `given`, lines sent
by file; `said`, what there is to say about it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from llmkit.config.redaction import Redactor
from llmkit.monitor.jsonlines import JsonLines
from llmkit.monitor.wandb_feed import Feed
from llmkit.monitor.wandb_finish import STOPPED_EARLY, hand_over
from llmkit.monitor.wandb_journal import FILES
from llmkit.monitor.wandb_open import open_run
from llmkit.monitor.wandb_session import read_session
from llmkit.monitor.wandb_sidecar import DONE, NOT_ON_SERVER, exit_now, wait_for_lock

ENDS = {"done": 0, "early_stopping": 0, "stop": STOPPED_EARLY}
"""The last event of a run that ended as it should: the exit code that W&B gets; 1 after any other."""

STARTS = ("start", "resume", "fault")
WAIT_SECONDS = 60.0
"""For the mirror of a trainer that was killed, which hands over its last rows."""


def catch_up(run_dir: Path) -> dict[str, Any]:
    """Sends what is missing; returns what the last line says. No alerts: they are for what happens now."""
    session, said = read_session(run_dir), list[str]()
    done, given = False, dict.fromkeys(FILES.values(), 0)
    lock = open(run_dir / "wandb" / "lock", "ab")  # noqa: SIM115 (held until the process ends)
    end = time.monotonic() + WAIT_SECONDS

    def gives_up(pause: float) -> bool:
        time.sleep(pause)
        return time.monotonic() > end

    try:
        if not wait_for_lock(lock, gives_up):
            raise TimeoutError("the mirror of its last start still holds the run")
        opened = open_run(run_dir, session, said.append, must=True)
        feed = Feed(run_dir, opened.journal, Redactor(os.environ), said.append)
        done = hand_over(run_dir, session, opened, feed, exit_code_of(run_dir), said.append)
        given = {FILES[kind]: count for kind, count in feed.given.items()}
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    return {"done": done, "given": given, "said": said}


def exit_code_of(run_dir: Path) -> int:
    """That of the newest start, by its last event."""
    events = [str(event.get("event")) for event in JsonLines(run_dir / FILES["e"]).rows()]
    return ENDS.get(next((event for event in reversed(events) if event in (*ENDS, *STARTS)), ""), 1)


if __name__ == "__main__":
    result = catch_up(Path(sys.argv[1]))
    print(json.dumps(result), flush=True)
    exit_now(DONE if result["done"] else NOT_ON_SERVER)
