"""The folder that is to hold runs: whether it can be written, how fast, with locks, and by all nodes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit.config.memory import show_bytes
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope
from llmkit.end_file import own_host
from llmkit.files import file_system

PREFIX = ".llmkit-doctor-"
"""Begins the names of all files that are made here, and removed."""
LITTLE, NONE = 10 * 2**30, 2**28
"""Free bytes: fewer than a checkpoint of a small model takes; fewer than a start takes."""
FEW_INODES = 1000
NO_LOCKS = "two runs on one run folder are kept apart by other means, and noticed later"
KEPT_OUT = "kept out"
CHUNK = 4 * 2**20
SLOW = 20e6
"""Bytes a second, written or read: below it is slower than a good network or disk by far."""
OFF_SECONDS = 2.0
"""What a clock may differ from that of the file system, which comes from another machine."""


def disk_findings(scope: Scope) -> Iterator[Finding]:
    """Writes for about a second into the folder."""
    folder = Path(scope.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if scope.meeting:
            show_up(folder, scope.meeting, own_host(os.environ))
        yield space_finding("free", folder)
        yield space_finding("free, temporary", Path(tempfile.gettempdir()))
        yield from _tried(folder, scope.full)
    except OSError as error:
        value = f"{error.filename or folder}: {error.strerror or error}"
        yield Finding("disk", "fail", value, "mend that, or set run.dir to another folder")


def space_finding(name: str, folder: Path) -> Finding:
    """Room for bytes and for files."""
    usage, files = shutil.disk_usage(folder), os.statvfs(folder)
    value = f"{show_bytes(usage.free)} of {show_bytes(usage.total)} free in {folder}"
    if kind := file_system(folder):
        value += f" ({kind})"
    advice = f"make room in {folder}, or set {'run.dir' if name == 'free' else 'TMPDIR'} to another disk"
    if files.f_files and files.f_favail < FEW_INODES:
        value += f", and room for {files.f_favail} files"
        return Finding(name, "warn" if files.f_favail else "fail", value, advice)
    if usage.free < LITTLE:
        return Finding(name, "warn" if usage.free >= NONE else "fail", value, advice)
    return Finding(name, "ok", value)


def _tried(folder: Path, full: bool) -> Iterator[Finding]:
    """What only a file shows: speed, locks, the file system's clock."""
    handle, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    try:
        os.write(handle, b"here")
        before = time.time()
        os.utime(handle)  # the file system's clock, on most network file systems the server's
        yield clock_finding(before, os.fstat(handle).st_mtime, time.time())
        yield lock_finding(handle, name)
        yield speed_finding(handle, *((2**30, 5.0) if full else (2**26, 0.5)))
    finally:
        os.close(handle)
        os.unlink(name)


def speed_finding(handle: int, size: int, seconds: float) -> Finding:
    """Writes up to `size` bytes for about `seconds`, syncs them, and reads them."""
    block = os.urandom(CHUNK)
    begin, written = time.perf_counter(), 0
    os.lseek(handle, 0, os.SEEK_SET)
    while written < size and time.perf_counter() - begin < seconds:
        written += os.write(handle, block)
    synced = time.perf_counter()
    os.fsync(handle)
    end = time.perf_counter()
    if hasattr(os, "posix_fadvise"):  # so that they are not read from memory; macOS has none
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(handle, 0, os.SEEK_SET)
    again, got = time.perf_counter(), 0
    while part := len(os.read(handle, CHUNK)):
        got += part
        if time.perf_counter() - again > seconds:
            break
    reading = max(time.perf_counter() - again, 1e-6)
    rates = {"write": written / max(end - begin, 1e-6), "read": got / reading}
    value = ", ".join(f"{kind} {rate / 1e6:,.0f} MB/s" for kind, rate in rates.items())
    value += f", sync {(end - synced) * 1e3:,.0f} ms of {show_bytes(written)}"
    if min(rates.values()) < SLOW:
        advice = "a save takes long: use a local or a parallel file system, or checkpoint.every_minutes"
        return Finding("disk speed", "warn", value, advice, "speed", rates)
    return Finding("disk speed", "ok", value, "", "speed", rates)


def lock_finding(handle: int, name: str) -> Finding:
    """Whether flock keeps a second open file out."""
    second = os.open(name, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Finding("file locks", "warn", "they keep nobody out", NO_LOCKS)
    except BlockingIOError:
        return Finding("file locks", "ok", "they work on this machine")
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        return Finding("file locks", "warn", f"none: {error.strerror}", NO_LOCKS)
    finally:
        os.close(second)


@contextmanager
def locked_file(folder: Path) -> Iterator[Path]:
    """A file in the folder that this process holds a lock on."""
    handle, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(name)
    finally:
        os.close(handle)
        os.unlink(name)


def lock_of_another(path: Path) -> str:
    """What the lock of another node's `locked_file` does here: KEPT_OUT, or what it does instead."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        return f"the file is not there ({error.strerror})"
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "it keeps nobody out"
    except BlockingIOError:
        return KEPT_OUT
    except OSError as error:
        return f"there are none ({error.strerror})"
    finally:
        os.close(handle)


def clock_finding(before: float, stored: float, after: float) -> Finding:
    """stored: what the file system noted, between two looks at this machine's clock."""
    off = max(before - stored, stored - after, 0.0)
    # The kernel's own clock of files stands still between its ticks.
    if off < OFF_SECONDS:
        return Finding(
            "clock", "ok", f"{time.strftime('%H:%M:%S', time.gmtime(after))} UTC, as the file system's"
        )
    side = "ahead of" if before > stored else "behind"
    advice = "start chrony or ntpd: times in logs will not fit together"
    return Finding("clock", "warn", f"{off:,.1f} s {side} the file system's", advice)


def show_up(folder: Path, meeting: str, node: str) -> None:
    """Leaves a file for the other nodes; what this one has left earlier goes."""
    for left in folder.glob(f"{PREFIX}*-at-{node}"):
        left.unlink(missing_ok=True)
    os.close(
        os.open(_mark(folder, meeting, node), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    )


def nodes_seen(folder: Path, meeting: str) -> list[str]:
    """The nodes that have left a file here. Call it once: NFS clients list a folder from memory later."""
    begin = _mark(folder, meeting, "").name
    try:
        return sorted(name.removeprefix(begin) for name in os.listdir(folder) if name.startswith(begin))
    except OSError:
        return []


def clear(folder: Path, meeting: str, nodes: list[str]) -> None:
    """Removes the files of nodes."""
    for node in nodes:
        _mark(folder, meeting, node).unlink(missing_ok=True)


def seen_finding(scope: Scope) -> Finding:
    """Which nodes share the folder with this one, of those that have shown up by now."""
    seen = nodes_seen(Path(scope.folder), scope.meeting)
    return Finding("shared folder", "ok", scope.folder, "", "seen", dict.fromkeys(seen, 1.0))


def _mark(folder: Path, meeting: str, node: str) -> Path:
    return folder / f"{PREFIX}{meeting}-at-{node}"
