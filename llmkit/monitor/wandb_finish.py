"""The end of a W&B run: what is left is handed over, and whether it has arrived is asked of the server."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmkit.files import write_json
from llmkit.monitor.wandb_artifacts import log_artifacts
from llmkit.monitor.wandb_feed import Feed
from llmkit.monitor.wandb_journal import FILES
from llmkit.monitor.wandb_open import Opened, Say, tear_down

STOPPED_EARLY = 75
ARRIVAL_SECONDS = 60.0
"""Within which a server counts the lines that it has taken."""


def hand_over(
    run_dir: Path, session: dict[str, Any], opened: Opened, feed: Feed, exit_code: int, say: Say
) -> bool:
    """Gives events, summary and artifacts, ends the run, and notes how far the server is.

    Returns whether all of it is where it belongs: on the server, or offline on this disk.
    """
    run = opened.run
    feed.pass_on(run)
    feed.give_events(run)
    run.summary.update(feed.best.summary())
    log_artifacts(run, run_dir, session, say)
    if exit_code == STOPPED_EARLY:
        run.mark_preempting()
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        say("the server did not take everything in time")
        return False
    if not feed.media_are_taken:
        return False
    arrived = opened.mode == "offline" or _has_arrived(session, run, len(feed.journal), say)
    tear_down()  # finish() may return before wandb-core has written the last rows to the disk
    if arrived:
        sizes = {name: _size(run_dir / name) for name in FILES.values()}
        state = {
            "mode": opened.mode,
            "sizes": sizes,
            **{name: session[name] for name in ("run_id", "server")},
        }
        with suppress(OSError):  # a full disk: `llmkit sync` asks the server once more
            write_json(run_dir / "wandb" / "state.json", state)
    return arrived


def is_complete(run_dir: Path, session: dict[str, Any]) -> bool:
    """Whether the server is known to have all of the run's record as it is now."""
    try:
        state = json.loads((run_dir / "wandb" / "state.json").read_text())
    except (OSError, ValueError):
        return False
    now = {name: _size(run_dir / name) for name in FILES.values()}
    expected = {"run_id": session["run_id"], "mode": "online", "server": session["server"], "sizes": now}
    return isinstance(state, dict) and expected.items() <= state.items()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _has_arrived(session: dict[str, Any], run: Any, lines: int, say: Say) -> bool:
    """Asks the server whether it has so many lines of the run: what it refuses, wandb keeps to itself."""
    import wandb

    path = f"{run.entity}/{run.project}/{run.id}"
    end = time.monotonic() + min(session["timeouts"]["finish"], ARRIVAL_SECONDS)
    while True:
        try:
            found = wandb.Api(timeout=5).run(path)
            there = max(found.historyLineCount or 0, found.lastHistoryStep + 1)
        except Exception as error:
            say(f"the server does not say what it has ({type(error).__name__}: {error})")
            return False
        if there >= lines:
            return True
        if time.monotonic() > end:
            say(f"the server has {there} of {lines} lines")
            return False
        time.sleep(0.5)
