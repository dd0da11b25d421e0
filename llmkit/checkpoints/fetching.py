"""`llmkit checkpoint fetch`, and models that are named by the URL of a copy."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from llmkit.checkpoint.keeping import BEST, parse_best
from llmkit.checkpoint.named import split_name
from llmkit.command_line import print_json, to_stderr
from llmkit.config.memory import show_bytes
from llmkit.copies import catalogue, fetch
from llmkit.copies.catalogue import Catalogue, Copy, Record
from llmkit.copies.outgoing import MANIFEST, stored
from llmkit.copies.owner import Known
from llmkit.copies.place import checked
from llmkit.copies.store import NotAsSentError, Store
from llmkit.data.sources.retries import RequestError
from llmkit.errors import RunFault, UserError
from llmkit.files import user_cache

_BEGUN = "copies/fetching"
"""File in a run folder that is not complete yet."""


class Copies(NamedTuple):
    """What a URL names. named: copies of one run that are complete, the oldest first, at least one."""

    store: Store
    all: Catalogue
    named: Sequence[Copy]


def fetch_command(url: str, out: Path, *, as_json: bool = False) -> int:
    """Makes a run folder of a copy, and prints the checkpoint in it.

    url: of the copies of one run; with @STEP or @best behind it that one, else the newest that is as it was
        sent.
    as_json: an object tells it, with its run folder and the copy that it is of.
    Raises UserError where there is none, or `out` is there; RunFault where the store does not give it.
    """
    if os.path.lexists(out) and not (out / _BEGUN).exists():
        raise UserError(f"fetch: {out} is there; name a folder that is not")
    copies = copies_at(url)
    try:
        (out / _BEGUN).parent.mkdir(parents=True, exist_ok=True)
        (out / _BEGUN).touch()
    except OSError as error:
        raise UserError(f"fetch: {out} cannot be written: {error.strerror}") from error
    path = _newest_good(copies, out / "checkpoints")
    try:
        fetch.fetch_record(copies.store, copies.all, out)
    except RequestError as error:
        raise _unfinished(copies.store, error) from error
    Known(copies.all.run, 0).write(out)
    (out / _BEGUN).unlink()
    if as_json:
        print_json({"path": str(path), "run": str(out), "url": f"{copies.store}/checkpoints/{path.name}"})
    else:
        print(path)
    return 0


def at_hand(url: str, environment: Mapping[str, str]) -> str:
    """The folder of a checkpoint that a URL names, fetched into this user's cache; see `fetch_command`.

    It stays there, and is not fetched again, unless the URL has another one of this step now. environment:
    names the folder of caches.
    """
    copies = copies_at(url)
    place = xxhash.xxh64(copies.store.url.encode()).hexdigest()
    root = user_cache(environment) / "copies" / f"{place}-{copies.all.run}"
    with _alone(root):
        return str(_newest_good(copies, root))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Lets one process at a time fetch into a folder of the cache: all ranks of a command want the same.

    Others wait. Raises UserError where the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "ab")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"{root} cannot be written ({error.strerror}); name another folder for caches in XDG_CACHE_HOME"
        ) from error
    with lock:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def copies_at(url: str) -> Copies:
    """The copies that URL, URL@STEP or URL@best names. Raises as `fetch_command` does."""
    place, name = split_name(url)
    store = Store(checked(place, "URL"))
    try:
        found = catalogue.read(store)
        named, step = [] if found is None else found.complete, name.removeprefix("step-")
        if name == "best" and found is not None:
            step = str(_best_step(store, found))
    except RequestError as error:
        raise RunFault(f"{store} cannot be read: {error}") from error
    if step.isdecimal():
        named = [copy for copy in named if copy.step == int(step)]
    if found is None or not named:
        has = ", ".join(str(copy.step) for copy in found.complete) if found is not None else ""
        raise UserError(
            f"{store} holds no complete copy of a run{f' of step {step}' if step else ''}"
            f"{f', but of {has}' if has else '; name the URL with the name of the run'}"
        )
    return Copies(store, found, named)


def _best_step(store: Store, found: Catalogue) -> int:
    """The step of the best checkpoint, by the record of the run. Raises UserError where none is."""
    record = found.record or Record(number=0, files=[])
    for file in record.files:
        if file.name == f"checkpoints/{BEST}":
            try:
                return parse_best(b"".join(store.blocks(record.path(file), file))).step
            except ValueError as error:
                raise UserError(f"{store}@best: its {file.name} is damaged ({error}); name a step") from error
    raise UserError(f"{store}@best: no checkpoint of the run is marked as the best; name a step instead")


def _newest_good(copies: Copies, root: Path) -> Path:
    """The checkpoint in `root` that the newest copy which is as it was sent becomes, or is already."""
    for copy in reversed(copies.named):
        path = root / copy.name
        if path.is_dir() and _is_copy(path, copy):
            return path
        to_stderr(f"fetching {copy.name} from {copies.store}, {show_bytes(copy.size)}")
        try:
            heads = fetch.look(copies.store, copy)
            aside = fetch.begin(copy, root)
            fetch.fetch_share(copies.store, copy, aside, heads=heads)
        except NotAsSentError as error:
            to_stderr(f"{copy.name} is not usable: {error}")
            continue
        except RequestError as error:
            raise _unfinished(copies.store, error) from error
        return fetch.finish(copy, aside)
    raise RunFault(f"no copy at {copies.store} is as it was sent")


def _is_copy(path: Path, copy: Copy) -> bool:
    """Whether a checkpoint here is that copy, by its manifest, which has the checksums of all else, and by
    the sizes of its files."""
    manifest = next(file for file in copy.files if file.name == MANIFEST)
    try:
        same = stored(manifest.name, (path / manifest.name).read_bytes()) == manifest
    except OSError:
        return False
    return same and not fetch.misfit(copy, path)


def _unfinished(store: Store, error: RequestError) -> RunFault:
    return RunFault(f"fetch: {store}: {error}; the same command goes on from here")
