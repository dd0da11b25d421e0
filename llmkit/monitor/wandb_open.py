"""The start of a W&B run: online where the server takes it, else offline; with the journal of its lines."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.monitor.jsonlines import Row, parse
from llmkit.monitor.wandb_feed import Tail
from llmkit.monitor.wandb_file import mark_as_synced, newest_on_disk
from llmkit.monitor.wandb_journal import FILES, Journal, digest
from llmkit.monitor.wandb_mode import Mode
from llmkit.monitor.wandb_page import page_config
from llmkit.monitor.wandb_rows import STEP

FLUSH_SECONDS = 1.0
"""How long wandb may keep rows before they are on the disk."""
Say = Callable[[str], None]


class Opened(NamedTuple):
    """A W&B run that takes rows. mode: the one it has, which may be offline where online was asked for."""

    run: Any
    mode: Mode
    journal: Journal


def is_reachable(server: str, timeout: float) -> bool:
    """Whether the server is alive; a doubtful answer counts as yes, as wandb will look again."""
    try:
        urllib.request.urlopen(server, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # wandb may know other certificates
    except (OSError, ValueError):
        return False
    return True


def open_run(run_dir: Path, session: dict[str, Any], say: Say, must: bool = False) -> Opened:
    """Starts the W&B run, offline where the server does not take it.

    must: raise instead what the server or wandb gives as the reason; ConnectionError where it is not there.
    """
    timeouts, server = session["timeouts"], session["server"]
    if session["mode"] == "online":
        try:
            if not is_reachable(server, timeouts["probe"]):
                raise ConnectionError(f"{server} does not answer")
            return _online(run_dir, session, say)
        except Exception as error:
            if must:
                raise
            say(f"W&B does not take the run ({type(error).__name__}: {error}): offline")
            tear_down()  # without it the id counts as in use
    journal = Journal(run_dir / "wandb" / "journal")
    if (found := newest_on_disk(run_dir, session["run_id"])) is not None:
        _agree(journal, found.lines, run_dir, found.row.get(STEP), say)
    return Opened(init(run_dir, session, "offline"), "offline", journal)


def _online(run_dir: Path, session: dict[str, Any], say: Say) -> Opened:
    run = init(run_dir, session, "online")
    mark_as_synced(run_dir)  # what the server has not is sent by this run
    lines, journal = int(run.starting_step), Journal(run_dir / "wandb" / "journal")
    journal.keep(lines)
    if len(journal) < lines and not _take_over_old_state(run_dir, session, journal, lines):
        _agree(journal, lines, run_dir, run.summary.get(STEP), say)
    return Opened(run, "online", journal)


def _agree(journal: Journal, lines: int, run_dir: Path, step: Any, say: Say) -> None:
    """Makes the journal one of as many lines as the W&B run has.

    Where it has lost some, they count as those of the record up to `step`, the last one that W&B has.
    """
    journal.keep(lines)
    if len(journal) == lines:
        return
    say(f"the W&B run has {lines} lines, of which {len(journal)} are known here: new ones follow them")
    missing = []
    for kind in ("m", "a"):
        known = journal.digests(kind)
        for line, _ in Tail(run_dir / FILES[kind]).lines():
            if digest(line) not in known and _is_until(step, parse(line)):
                missing.append((kind, line))
    _fill(journal, lines, missing)


def _is_until(step: Any, row: Row | None) -> bool:
    at = (row or {}).get("step")
    return isinstance(step, int | float) and isinstance(at, int) and at <= step


def _fill(journal: Journal, lines: int, given: list[tuple[str, bytes]]) -> None:
    """Fills the journal up to `lines` with these lines of files, and with unknown ones before them."""
    given = given[: lines - len(journal)]
    journal.fill(lines - len(given))
    for kind, line in given:
        journal.append(kind, line)


def _take_over_old_state(run_dir: Path, session: dict[str, Any], journal: Journal, lines: int) -> bool:
    """Fills the journal of a run that a version until 2026-11-29 has mirrored; returns whether that is one.

    Those versions wrote down up to which offset of metrics.jsonl the rows were on the server.
    """
    try:
        offset = int(json.loads((run_dir / "wandb" / "mirror.json").read_text())["offset"])
        data = (run_dir / FILES["m"]).read_bytes()[: min(offset, session["first_news"]["m"])]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    rows = [line for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True) if parse(line)]
    journal.keep(0)
    _fill(journal, lines, [("m", line) for line in rows])
    return True


def init(run_dir: Path, session: dict[str, Any], mode: Mode) -> Any:
    """One attempt to start the W&B run; raises whatever wandb raises."""
    import wandb

    timeouts, online = session["timeouts"], mode == "online"
    run = wandb.init(
        dir=str(run_dir),
        project=session["project"],
        entity=session["entity"],
        name=session["name"],
        tags=session["tags"] or None,
        group=session["group"],
        notes=session["notes"],
        job_type=session["job_type"],
        id=session["run_id"],
        resume="allow",
        config=page_config(session["settings"], session["manifest"], session["forked_from"]),
        mode=mode,
        settings=wandb.Settings(
            # They are for the server: what this machine does alone ends in any case, however busy it is.
            init_timeout=timeouts["init"] if online else timeouts["abandon"],
            finish_timeout=timeouts["finish"] if online else timeouts["abandon"],
            finish_timeout_raises=True,
            login_timeout=timeouts["init"],
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            x_stats_pid=session["trainer"],
            console="off",
            silent=True,
            # Command lines, git remotes and package lists may hold secrets.
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_save_requirements=False,
            sagemaker_disable=True,  # it would choose another id
            stop_fn=_ignore_stop,
        ),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def _ignore_stop() -> None:
    """Who stops a run in W&B stops no training: wandb would interrupt this process, which only mirrors it."""


def tear_down() -> None:
    """Waits until wandb-core has ended."""
    import wandb

    wandb.teardown()
