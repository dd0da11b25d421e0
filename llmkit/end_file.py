"""How a start ended, for the batch script that made it: one JSON object in the file that $END_FILE names.

Launchers make exit code 1 of almost everything; the file tells apart what must be treated differently:

    {"end": "stopped", "reason": "...", "step": 120, "saved_step": 120, "first_step": 90, "hosts": []}

`end` is `done`, `stopped` (on request, and saved), `mistake` (the user's, so another start would meet it
again) or `fault`. step: the last one done; saved_step: that of the newest checkpoint; first_step: the number
of steps that were done when this start began; null where it is not known. hosts: nodes that may be the cause
of a fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from llmkit.errors import AlreadyReported, RunFault, UserError

END_FILE = "END_FILE"
"""The variable that names the file; the batch script gives each start a new one."""
MAX_REASON = 2000
"""Characters of a reason that are kept."""

Kind = Literal["done", "stopped", "mistake", "fault"]
KINDS: tuple[Kind, ...] = ("done", "stopped", "mistake", "fault")


@dataclass(frozen=True)
class End:
    """See the top of this file."""

    end: Kind
    reason: str = ""
    step: int | None = None
    saved_step: int | None = None
    first_step: int | None = None
    hosts: Sequence[str] = ()


def end_file(environment: Mapping[str, str]) -> Path | None:
    """The file that $END_FILE names; None where nobody asks for it."""
    return Path(environment[END_FILE]) if environment.get(END_FILE) else None


def write_end(end: End, environment: Mapping[str, str]) -> None:
    """Says how this start ends, where a batch script asks for it; of several ends the first one stays.

    Any process of the run may call it; a reader finds all of it or nothing. Raises RunFault where it cannot
    be written.
    """
    path = end_file(environment)
    if path is None:
        return
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    content = {**asdict(end), "reason": end.reason[:MAX_REASON], "hosts": list(end.hosts)}
    try:
        try:
            partial.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)  # unlike a rename, it leaves what is there
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunFault(f"cannot write {path} ({END_FILE}): {error.strerror}") from error


def forget_end(environment: Mapping[str, str]) -> None:
    """Removes what an earlier attempt of this start has written: launchers may restart their processes.

    Raises RunFault where that cannot be.
    """
    try:
        if (path := end_file(environment)) is not None:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunFault(f"cannot remove {path} ({END_FILE}): {error.strerror}") from error


def read_end(path: Path) -> End | None:
    """What a start has written; None where there is no such file, or another one of that name."""
    try:
        content = json.loads(path.read_bytes())
        end = End(**{**content, "hosts": tuple(content["hosts"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    numbers = (end.step, end.saved_step, end.first_step)
    texts = (end.reason, *end.hosts)
    fits = end.end in KINDS and all(isinstance(text, str) for text in texts)
    return end if fits and all(number is None or type(number) is int for number in numbers) else None


@contextlib.contextmanager
def errors_recorded(environment: Mapping[str, str]) -> Iterator[None]:
    """An error that leaves the block is written as the end of this start, unless there is one already."""
    try:
        yield
    except AlreadyReported:  # by another process
        raise
    except Exception as error:
        with contextlib.suppress(RunFault):  # what counts is the error itself
            write_end(end_of(error), environment)
        raise


def end_of(error: BaseException) -> End:
    """The end that an error makes."""
    if isinstance(error, UserError):
        return End("mistake", str(error))
    if isinstance(error, RunFault):
        return End("fault", str(error), hosts=error.hosts)
    return End("fault", f"{type(error).__name__}: {error}")


def own_host(environment: Mapping[str, str]) -> str:
    """This host, by the name that SLURM has for it, if it runs here."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()
