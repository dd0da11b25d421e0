"""What the mirror process is told, in wandb/session.json; the identity of a run in W&B."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.config.redaction import Redactor
from llmkit.files import plain, write_atomic, write_json
from llmkit.monitor.jsonlines import parse
from llmkit.monitor.wandb_environment import for_wandb
from llmkit.monitor.wandb_file import mark_as_synced
from llmkit.monitor.wandb_journal import FILES
from llmkit.monitor.wandb_mode import Mode, server_url
from llmkit.monitor.wandb_names import Names, known_run_id

if TYPE_CHECKING:
    from llmkit.config.monitor_section import Wandb

OF_A_RUN = ("run_id", "session.json", "state.json", "journal", "mirror.json")
"""Files in wandb/ that belong to one W&B run. mirror.json is of versions until 2026-11-29."""


class Timeouts(NamedTuple):
    """Seconds for each thing that may hang. From the trainer's end: finish < abandon < kill."""

    probe: float = 3.0
    """The server's answer to a first request."""
    init: float = 20.0
    """The server's part in the start of the W&B run."""
    finish: float = 10.0
    """Handing over the last rows to the server: what a server that is gone costs a run at its end."""
    abandon: float = 20.0
    """The mirror process ends itself; what it has not done `llmkit sync` does."""
    kill: float = 25.0
    """The trainer kills the mirror process: what W&B can cost a run at its end, at the most."""
    again: float = 30.0
    """The first pause before wandb is started anew, where it broke down or the server was not there."""


def wandb_environment(session: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that mirrors the run of this session."""
    names = Names(**{name: session[name] for name in Names._fields if name in session})
    variables = names.variables(session["run_id"]) | {"WANDB_BASE_URL": session["server"]}
    return for_wandb(environment, variables)


class Copy(NamedTuple):
    """A run folder that was copied. original: where it is a copy of, which is still there."""

    original: Path
    run_id: str


def begin_session(
    run_dir: Path,
    mode: Mode,
    names: Names,
    settings: Wandb,
    config: Mapping[str, Any],
    timeouts: Timeouts,
    environment: Mapping[str, str],
) -> tuple[dict[str, Any], Copy | None]:
    """Writes all that the mirror process needs to know, without secrets; returns it.

    A branch is forked from the W&B run of the one that it began with. Also tells where this folder is a copy
    of a run folder that is still there: then it is a W&B run of its own, forked from that one. A folder that
    was moved keeps its W&B run. Raises OSError.
    """
    copy = _leave_original(run_dir)
    folder = run_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    before = _read(folder / "session.json")
    redactor, manifest = Redactor(environment), _read(run_dir / "manifest.json")
    forked_from = before.get("forked_from") or _branch_of(manifest)
    if copy is not None:
        forked_from = {"run_id": copy.run_id, "step": _last_common_step(run_dir, copy.original)}
    manifest.pop("command", None)  # it may hold secrets
    shown = {name: value for name, value in names._asdict().items() if name not in ("remarks", "run_id")}
    shown["name"] = names.name or run_dir.resolve().name
    session = {
        "mode": mode,
        "server": server_url(environment),
        **redactor.value(shown),
        "run_id": _run_id(folder / "run_id", names.run_id),
        "forked_from": forked_from,
        "restarts": before["restarts"] + 1 if isinstance(before.get("restarts"), int) else 0,
        "folder": str(run_dir.resolve()),
        "trainer": os.getpid(),
        "timeouts": timeouts._asdict(),
        "alerts": settings.alerts,
        "artifacts": list(settings.artifacts),
        "first_news": {kind: _size(run_dir / FILES[kind]) for kind in ("m", "e")},
        "settings": redactor.value(plain(config)),
        "manifest": redactor.value(manifest),
    }
    write_session(run_dir, session)
    return session, copy


def write_session(run_dir: Path, session: dict[str, Any]) -> None:
    """Writes it for the mirror process. Raises OSError."""
    write_json(run_dir / "wandb" / "session.json", session)


def read_session(run_dir: Path) -> dict[str, Any]:
    """What `begin_session` has written last. Raises OSError, ValueError."""
    session: dict[str, Any] = json.loads((run_dir / "wandb" / "session.json").read_text())
    return session


def _leave_original(run_dir: Path) -> Copy | None:
    """Where this folder is a copy of a run folder that is still there, forgets that one's W&B run."""
    folder = run_dir / "wandb"
    try:
        original = Path(read_session(run_dir)["folder"])
        run_ids = [(each / "run_id").read_text() for each in (folder, original / "wandb")]
        if run_dir.samefile(original) or run_ids[0] != run_ids[1]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    mark_as_synced(run_dir)  # else `wandb sync` would send the original's lines once more
    for name in OF_A_RUN:  # the new run gets all rows
        (folder / name).unlink(missing_ok=True)
    return Copy(original, run_ids[0].strip())


def is_fork(run_dir: Path) -> bool:
    """Whether this folder is a copy of a run folder that is still there, and has rows of its own."""
    try:
        original = Path(read_session(run_dir)["folder"])
        if run_dir.samefile(original) or known_run_id(run_dir) != known_run_id(original):
            return False
        rows, theirs = ((folder / FILES["m"]).read_bytes() for folder in (run_dir, original))
        return not theirs.startswith(rows)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _branch_of(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a branch (`llmkit train --from`) left the W&B run of the one it began with, if that has one."""
    began = manifest.get("branched_from")
    if not isinstance(began, Mapping) or not isinstance(began.get("run"), str):
        return None
    known = known_run_id(Path(began["run"]))
    return None if known is None else {"run_id": known, "step": began.get("step")}


def _run_id(path: Path, asked: str | None) -> str:
    """The W&B id of the run, made once: with the same id a resumed run goes on in the same charts."""
    if (known := known_run_id(path.parents[1])) is not None:
        return known
    for name in OF_A_RUN:  # of a run whose id is lost
        path.with_name(name).unlink(missing_ok=True)
    new = asked or secrets.token_hex(6)
    with write_atomic(path) as file:
        file.write(f"{new}\n".encode())
    return new


def _last_common_step(run_dir: Path, original: Path) -> int:
    """Where a copy began to differ, by its rows; 0 where it is not known."""
    last = 0
    paths = (folder / FILES["m"] for folder in (run_dir, original))
    with suppress(OSError), open(next(paths), "rb") as ours, open(next(paths), "rb") as theirs:
        for line, other in zip(ours, theirs, strict=False):
            if line != other:
                break
            step = (parse(line) or {}).get("step")
            last = step if isinstance(step, int) else last
    return last


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; empty where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
