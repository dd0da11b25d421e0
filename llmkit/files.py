"""Small files that are written atomically, and messages about files that cannot be read."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from xxhash import xxh64_hexdigest

from llmkit.errors import UserError

PARTIAL = ".part"
"""Ends the name of a file that is being written."""


class NoAccessError(UserError):
    """A file that this user may not read: nothing is wrong with it, and its owner can mend that."""


def cannot_read(path: Path, error: OSError, remedy: str = "") -> UserError:
    """The error to raise for a file that could not be read; `remedy` helps where it is missing or broken."""
    if isinstance(error, PermissionError):
        return NoAccessError(
            f"{path}: cannot be read ({error.strerror}); ask {owner_of(path)} for read access to it"
        )
    what = f"{path}: cannot be read ({error.strerror or error})"
    return UserError(f"{what}; {remedy}" if remedy else what)


def open_regular(path: Path) -> BinaryIO:
    """A file to read. Raises OSError, also for what is no file: opening a pipe would wait for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return os.fdopen(descriptor, "rb")


def owner_of(path: Path) -> str:
    """Who can give access to a path, for messages: its owner, or that of the innermost folder seen."""
    for each in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            user = os.stat(each).st_uid
            try:
                return f"{pwd.getpwuid(user).pw_name}, the owner of {each},"
            except KeyError:
                return f"user {user}, the owner of {each},"
    return "its owner"


def may_exist(path: str | Path) -> bool:
    """Whether there is something at a path, or may be: where this user may not look, opening it will tell."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object; raises UserError, ending in `remedy`, if the file is missing or holds no such thing."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise cannot_read(path, error, remedy) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON, the file is damaged; {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object, the file is damaged; {remedy}")
    return content


@contextlib.contextmanager
def write_atomic(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name only after its content is on the disk.

    Where that fails, the file that was there before is still there, and no part of the new one is. A symbolic
    link gives way to the file, and what it names stays as it is: where others may write into a folder, a link
    in it could name anything. What is no file, such as a pipe or a device, is written to as it is, and so is
    the system's name of an open file, such as /dev/stdout.

    check: called when the new file is on the disk, before it gets its name, from which an error keeps it.
    """
    if path.exists() and (not path.is_file() or _of_system(path)):  # a new file would take its place
        with path.open("wb") as file:
            yield file
        return
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)  # of a process that was killed, or a link that somebody has put there
    try:
        with open(partial, "xb", buffering=1 << 20) as file:  # follows no link
            yield file
            file.flush()
            os.fsync(file.fileno())
        check()
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def user_cache(environment: Mapping[str, str]) -> Path:
    """The folder for what this user's later starts can use again; it need not be there."""
    home = environment.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # the XDG specification wants relative ones ignored
        home = os.path.expanduser("~/.cache")
    return Path(home) / "llmkit"


def _of_system(path: Path) -> bool:
    """Whether a name is one of the system's, which may stand for a file that is open: /dev/stdout."""
    folder = path.parent.resolve()
    return folder == Path("/dev") or folder.parts[1:2] == ("proc",)


def plain(value: Any) -> Any:
    """`value` with non-finite floats replaced by None: JSON has no NaN, and many readers refuse it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, atomically."""
    with write_atomic(path) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, which has a `version`, with a checksum over all that it says."""
    write_json(path, {**content, "checksum": _checksum(content)})


def read_sealed(path: Path, remedy: str, first: int) -> dict[str, Any]:
    """What `write_sealed` wrote; raises UserError, ending in `remedy`, for anything else.

    first: the first version of this kind of file that has a checksum; older ones are read without.
    """
    content = read_json(path, remedy)
    checksum, version = content.pop("checksum", None), content.get("version", 0)
    has_none = checksum is None and isinstance(version, int) and version < first
    if not has_none and checksum != _checksum(content):
        raise UserError(f"{path}: does not match the checksum in it, the file is damaged; {remedy}")
    return content


def _checksum(content: dict[str, Any]) -> str:
    """xxh64 of what a JSON object says, however it is laid out."""
    return xxh64_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system that a path lies on, such as "nfs4"; "" where that is not known."""
    longest, kind = -1, ""
    try:
        resolved = path.resolve()
        for line in mounts.read_text(errors="replace").splitlines():
            _, place, found, *_ = line.split(" ")
            if resolved.is_relative_to(place.replace("\\040", " ")) and len(place) >= longest:
                longest, kind = len(place), found
    except (OSError, ValueError):
        return ""
    return kind


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files behind them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
