"""`llmkit train` on disks that fill up, turn read-only or vanish. Run in a process of its own, as root.

Usage: python -m tests.drills.disk_cases FOLDER, where a project is. Writes FOLDER/report.json: case -> what
was seen. Disks are small file systems in memory, in a mount namespace of this process.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint import read
from tests.mounts import mount, own_mounts, tmpfs
from tests.program import at_step, recorded, rows, timeless, train

STEPS = ["train.max_steps=12", "checkpoint.every_steps=3", "checkpoint.keep_last=2"]
HARMED, MENDED = 5, 8
"""Steps as which the disk is harmed, so that the save after 6 fails, and mended again."""


def disk(name: str, options: str) -> Path:
    """A small disk for runs."""
    return tmpfs(Path("disks") / name, options)


def fill_bytes(folder: Path) -> None:
    """All but a little, so that the save fails at a file of tensors."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        file.truncate(file.tell() - 65536)


def fill_inodes(folder: Path) -> None:
    """All but that of the new folder."""
    (folder / "ballast").mkdir()
    with contextlib.suppress(OSError):
        for number in range(10**6):
            (folder / "ballast" / str(number)).touch()
    (folder / "ballast" / "0").unlink()


def empty(folder: Path) -> None:
    subprocess.run(["rm", "-r", str(folder / "ballast")], check=True)


def forked(work: Callable[[], Any]) -> Any:
    """What comes of some work in a process of its own: each start of a run is one."""
    answer = Path("answer.json")
    child = os.fork()
    if child == 0:
        try:
            answer.write_text(json.dumps(work()))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    found = json.loads(answer.read_text())
    answer.unlink()
    return found


def harmed(run_dir: Path, acts: dict[int, Callable[[], Any]], *overrides: str) -> dict[str, Any]:
    """A run to which something is done as steps begin; what came of it."""
    output, errors, newest = io.StringIO(), io.StringIO(), []

    def look() -> None:
        newest.append(newest_step(run_dir / "tiny"))

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        for step, act in acts.items():
            at_step(patch, step, act)
        at_step(patch, MENDED - 1, look)  # after the save that fails
        code = train(f"run.dir={run_dir}", *STEPS, *overrides)
    return {
        "code": code, "output": output.getvalue(), "errors": errors.getvalue(), "newest": newest,
        "after": newest_step(run_dir / "tiny"),
    }  # fmt: skip


def newest_step(run: Path) -> int | None:
    """Of the newest checkpoint that verifies."""
    found = read.newest(run / "checkpoints", lambda line: None)
    return found.step if found else None


def record(run: Path) -> dict[str, Any]:
    """What the run folder tells of it."""
    return {
        "same": timeless(run) == timeless(Path("runs/tiny")),
        "failed": recorded("save_failed", run),
        "last": json.loads((run / "events.jsonl").read_text().splitlines()[-1]),
        "saves": [event["step"] for event in recorded("save", run)],
        "left": sorted(path.name for path in (run / "checkpoints").iterdir()),
    }


def full(name: str, options: str, fill: Callable[[Path], None]) -> dict[str, Any]:
    """The disk is full while a checkpoint is written, and has room again for the next."""
    folder = disk(name, options)
    acts = {HARMED: lambda: fill(folder), MENDED: lambda: empty(folder)}
    return forked(lambda: harmed(folder, acts)) | record(folder / "tiny")


def read_only() -> dict[str, Any]:
    """The disk turns read-only for good; the next start finds it mended."""
    folder = disk("read-only", "size=16m")
    run = folder / "tiny"

    def turn() -> None:
        mount("--bind", run, run)
        mount("-o", "remount,ro,bind", run)

    seen = forked(lambda: harmed(folder, {HARMED: turn}, "checkpoint.max_failed_saves=2"))
    subprocess.run(["umount", str(run)], check=True)
    return seen | record(run) | {"resumed": forked(lambda: resumed(folder))}


def vanishing() -> dict[str, Any]:
    """The disk goes while the run has files open on it; the next start finds it again."""
    folder = disk("vanishing", "size=16m")
    kept = Path("disks/kept")
    kept.mkdir()
    mount("--bind", folder, kept)

    def turn() -> None:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

    seen = forked(lambda: harmed(folder, {HARMED: turn}, "checkpoint.max_failed_saves=2"))
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    mount("--bind", kept, folder)
    seen |= {"left under it": left} | record(folder / "tiny")
    return seen | {"resumed": forked(lambda: resumed(folder))}


def failing() -> dict[str, Any]:
    """Writing to new files gives an error of the device."""
    real = os.open

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and "pieces-" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, flags, *rest, **more)

    folder = disk("failing", "size=16m")
    patch = pytest.MonkeyPatch()
    acts = {HARMED: lambda: patch.setattr(os, "open", opened), MENDED: patch.undo}
    return forked(lambda: harmed(folder, acts)) | record(folder / "tiny")


def slow() -> dict[str, Any]:
    """A disk that takes a second for each file of one save."""
    real, waited, patch = os.fsync, [], pytest.MonkeyPatch()

    def synced(descriptor: int) -> None:
        waited.append(1.0)
        time.sleep(1.0)
        real(descriptor)

    def work() -> dict[str, Any]:
        acts = {HARMED: lambda: patch.setattr(os, "fsync", synced), MENDED - 1: patch.undo}
        return harmed(folder, acts) | {"waited": sum(waited)}

    folder = disk("slow", "size=16m")
    seen, run = forked(work), folder / "tiny"
    of_rows = {row["step"]: row["time/save"] for row in rows(run) if "time/save" in row}
    return seen | record(run) | {"rows": of_rows}


def resumed(folder: Path) -> dict[str, Any]:
    """The same command again; what came of it."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = train(f"run.dir={folder}", *STEPS)
    run = folder / "tiny"
    starts = [event["step"] for event in recorded("resume", run)]
    return {"code": code, "errors": errors.getvalue(), "from": starts, **record(run)}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "bytes": lambda: full("bytes", "size=16m", fill_bytes),
    "inodes": lambda: full("inodes", "size=16m,nr_inodes=60", fill_inodes),
    "read-only": read_only,
    "vanishing": vanishing,
    "failing": failing,
    "slow": slow,
}


def main(folder: str) -> None:
    os.chdir(folder)
    if problem := own_mounts():
        report: dict[str, Any] = {"cannot": problem}
    else:
        assert forked(lambda: train(*STEPS)) == 0  # runs/tiny, which nothing disturbs
        report = {name: case() for name, case in CASES.items()}
    Path("report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
