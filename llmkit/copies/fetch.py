"""Bringing a checkpoint, and the record of its run, back from a store."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import xxhash

from llmkit.config.memory import show_bytes
from llmkit.copies.catalogue import Catalogue, Copy
from llmkit.copies.outgoing import BLOCK, Stored
from llmkit.copies.record import is_of_record
from llmkit.copies.store import Store
from llmkit.data.sources.remote import FileStat
from llmkit.data.sources.retries import in_thread
from llmkit.errors import RunFault
from llmkit.files import sync_folder, write_atomic

PREFIX = ".fetching-"
"""Before the name of a checkpoint that is being fetched; what is there of it is not fetched again."""
_OLD = f"{PREFIX}old-"
"""Before that of one in whose place another one comes."""
_ASKED_AT_ONCE = 8
"""Files whose sizes a store is asked for."""


def aside(copy: Copy, root: Path) -> Path:
    """The folder beside the checkpoints in which a copy becomes one."""
    return root / f"{PREFIX}{copy.name}"


def look(store: Store, copy: Copy, share: int = 0, of: int = 1) -> dict[str, FileStat]:
    """What the store tells of every file of a copy whose number is `share` modulo `of`; before anything is
    fetched, as one that is not there would be seen after hours else.

    Raises RequestError where the store does not tell it, NotAsSentError where one is missing or of another
    size than was sent.
    """
    largest_first = sorted(copy.files, key=lambda file: (-file.size, file.name))[share::of]
    heads = dict[str, FileStat]()
    for first in range(0, len(largest_first), _ASKED_AT_ONCE):
        asked = largest_first[first : first + _ASKED_AT_ONCE]
        answers = [in_thread(partial(store.head_of, copy.path(file), file)) for file in asked]
        heads |= {file.name: answer.result() for file, answer in zip(asked, answers, strict=True)}
    return heads


def begin(copy: Copy, root: Path) -> Path:
    """Makes the folder in which a copy becomes a checkpoint. Raises RunFault, also where the disk has less
    room than what is missing of it takes."""
    folder = aside(copy, root)
    sizes = {file.name: file.size for file in copy.files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            if left.is_symlink() or left.name not in sizes:
                left.unlink()
        there = {left.name: left.stat().st_size for left in folder.iterdir()}
        needed = sum(max(0, size - there.get(name, 0)) for name, size in sizes.items())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunFault(f"cannot write {folder}: {error.strerror}") from error
    if free < needed:
        raise RunFault(
            f"{copy.name} cannot be fetched: the disk of {root} has {show_bytes(free)} free, and what is "
            f"missing of it takes {show_bytes(needed)}; make room"
        )
    return folder


def fetch_share(
    store: Store, copy: Copy, folder: Path, share: int = 0, of: int = 1,
    heads: Mapping[str, FileStat] | None = None,
) -> None:  # fmt: skip
    """Fetches every file of a copy whose number is `share` modulo `of`, each block compared.

    heads: what `look` has found. Raises RequestError where the store does not give them, NotAsSentError where
    they are not what was sent there, RunFault where the disk does not take them.
    """
    heads = look(store, copy, share, of) if heads is None else heads
    try:
        for file in filter(lambda each: each.name in heads, copy.files):
            _fetch_file(store, copy.path(file), file, heads[file.name], folder / file.name)
    except OSError as error:
        raise RunFault(f"cannot write into {folder}: {error.strerror or error}") from error


def misfit(copy: Copy, folder: Path) -> str:
    """The first file in a folder that is missing or has another size than that of a copy, and how; or ""."""
    for file in copy.files:
        try:
            found = os.lstat(folder / file.name)
        except OSError as error:
            return f"{file.name}: {error.strerror}"
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
            return f"{file.name} has {found.st_size} bytes instead of {file.size}"
    return ""


def finish(copy: Copy, folder: Path) -> Path:
    """Gives the fetched checkpoint its name, in the place of another one of this name; returns its folder.

    Raises RunFault.
    """
    if problem := misfit(copy, folder):
        raise RunFault(
            f"{folder}: {problem}, though all processes have fetched their share: do their nodes share this "
            "disk?"
        )
    final, old = folder.with_name(copy.name), folder.with_name(_OLD + copy.name)
    try:
        sync_folder(folder)
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            final.rename(old)
        folder.rename(final)
        sync_folder(final.parent)
    except OSError as error:
        raise RunFault(f"cannot rename {folder} to {final}: {error.strerror}") from error
    shutil.rmtree(old, ignore_errors=True)
    return final


def forget(root: Path) -> None:
    """Removes what was fetched of copies that became no checkpoint. root: the folder of checkpoints."""
    with suppress(OSError):
        for left in root.glob(f"{PREFIX}*step-*"):
            shutil.rmtree(left, ignore_errors=True)


def fetch_record(store: Store, catalogue: Catalogue, folder: Path) -> None:
    """Fetches the record of a run into its folder; a file that is longer there already stays.

    Raises as `fetch_share` does.
    """
    if catalogue.record is None:
        return
    for file in filter(lambda each: is_of_record(each.name), catalogue.record.files):
        path = folder / file.name
        try:
            if path.is_file() and path.stat().st_size >= file.size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomic(path) as written:
                for block in store.blocks(catalogue.record.path(file), file):
                    written.write(block)
        except OSError as error:
            raise RunFault(f"cannot write {path}: {error.strerror}") from error


def _fetch_file(store: Store, name: str, file: Stored, head: FileStat, path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        start = _at_hand(descriptor, file)
        os.ftruncate(descriptor, start)
        os.lseek(descriptor, start, os.SEEK_SET)
        if start < file.size:
            for block in store.blocks(name, file, head, start):
                _write(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _at_hand(descriptor: int, file: Stored) -> int:
    """How many bytes of a file are there already, as whole blocks that are what was sent."""
    for number, checksum in enumerate(file.xxh64):
        block = os.pread(descriptor, min(BLOCK, file.size - number * BLOCK), number * BLOCK)
        if xxhash.xxh64(block).hexdigest() != checksum:
            return number * BLOCK
    return file.size


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
