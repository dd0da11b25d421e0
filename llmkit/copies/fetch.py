"""Bringing a checkpoint, and the record of its run, back from a store."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import xxhash

from llmkit.copies.catalogue import Catalogue, Copy
from llmkit.copies.outgoing import BLOCK, Stored
from llmkit.copies.record import is_of_record
from llmkit.copies.store import Store
from llmkit.errors import RunFault
from llmkit.files import sync_folder, write_atomic

PREFIX = ".fetching-"
"""Before the name of a checkpoint that is being fetched; what is there of it is not fetched again."""


def aside(copy: Copy, root: Path) -> Path:
    """The folder beside the checkpoints in which a copy becomes one."""
    return root / f"{PREFIX}{copy.name}"


def begin(copy: Copy, root: Path) -> Path:
    """Makes the folder in which a copy becomes a checkpoint. Raises RunFault."""
    folder = aside(copy, root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            if left.is_symlink() or left.name not in {file.name for file in copy.files}:
                left.unlink()
    except OSError as error:
        raise RunFault(f"cannot write {folder}: {error.strerror}") from error
    return folder


def fetch_share(store: Store, copy: Copy, folder: Path, share: int = 0, of: int = 1) -> None:
    """Fetches every file of a copy whose number is `share` modulo `of`, each block compared.

    Raises FailedError where the store does not give them, NotAsSentError where they are not what was sent
    there, RunFault where the disk does not take them.
    """
    largest_first = sorted(copy.files, key=lambda file: (-file.size, file.name))
    try:
        for file in largest_first[share::of]:
            _fetch_file(store, copy.path(file), file, folder / file.name)
    except OSError as error:
        raise RunFault(f"cannot write into {folder}: {error.strerror or error}") from error


def finish(copy: Copy, folder: Path) -> Path:
    """Gives the fetched checkpoint its name; returns its folder. Raises RunFault."""
    final = folder.with_name(copy.name)
    try:
        sync_folder(folder)
        folder.rename(final)
        sync_folder(final.parent)
    except OSError as error:
        raise RunFault(f"cannot rename {folder} to {final}: {error.strerror}") from error
    return final


def forget(root: Path) -> None:
    """Removes what was fetched of copies that became no checkpoint. root: the folder of checkpoints."""
    with suppress(OSError):
        for left in root.glob(f"{PREFIX}step-*"):
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


def _fetch_file(store: Store, name: str, file: Stored, path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        start = _at_hand(descriptor, file)
        os.ftruncate(descriptor, start)
        os.lseek(descriptor, start, os.SEEK_SET)
        if start < file.size:
            for block in store.blocks(name, file, start=start):
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
