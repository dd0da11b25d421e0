"""The files of a source, local or remote."""

from __future__ import annotations

import glob
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import xxhash

from llmkit.config import schema
from llmkit.data.sources.custom import CustomSpec
from llmkit.data.sources.formats import format_of
from llmkit.data.sources.remote import WEB, RemoteFile, open_filesystem, remote_file
from llmkit.data.sources.retries import RequestError, RetryPolicy, one_line, with_retries
from llmkit.data.sources.urls import is_url, redact_url
from llmkit.errors import UserError
from llmkit.files import cannot_read, may_exist

RETRIES = RetryPolicy(retries=3, first_delay=0.5)
"""Fewer than for reading: a host whose name is misspelt is to be reported soon."""
_STDLIB_LEAVES_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "__pycache__"})
_SUFFIXES = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
"""Of the files that a folder stands for, by type; of other types it stands for all files."""
_TAG_BYTES = 4096


class File(NamedTuple):
    """A file of a source.

    path: absolute, or a URL. size: bytes. tag: identifies the content beside the size: of a local file the
    xxh64 of its first and last 4 KiB, else what the store says (ETag, checksum or time of the last change),
    "" if nothing. stamp: time of a local file's last change, in ns; not part of its identity.
    """

    path: str
    size: int
    tag: str
    stamp: int = 0


def is_remote(spec: schema.Source) -> bool:
    """Whether the files of a source are not on local disks."""
    if spec.type == "hub":
        return not os.path.isdir(spec.dataset or "")
    is_text = spec.type not in schema.PRETOKENIZED
    return is_text and any(is_url(pattern.removeprefix("file://")) for pattern in _patterns(spec))


def list_files(spec: schema.Source, setting: str) -> list[File]:
    """Files of a source, without repeats, sorted by path.

    A folder stands for the files in and under it, hidden ones left out (jsonl, parquet, arrow: those with
    that suffix); links are followed, and a file that is found under several names is read once. setting: key
    of the source's settings, for messages. Raises UserError where nothing is found and for a file that
    cannot be read.
    """
    if isinstance(spec, CustomSpec):
        return [File(*unit) for unit in spec.sized_units(setting)]
    paths = sorted(set(_paths(spec, setting)))
    if spec.type != "hub":  # whose files are links to contents, which two of them may share
        paths = _without_linked_twice(paths)
    for path in paths:
        format_of(spec, path)
    return stat_files(paths)


def stat_files(paths: Sequence[str]) -> list[File]:
    """Files as they are now, by their paths; raises UserError for one that cannot be read."""
    # fsspec has a client a thread: all are made in this one. The first file alone: then a store may already
    # have told of the others.
    each = [partial(_stat, path, _remote_file(path)) for path in paths]
    with ThreadPoolExecutor(16) as pool:
        return [each[0](), *pool.map(lambda one: one(), each[1:])]


def _remote_file(path: str) -> RemoteFile | None:
    return remote_file(path, RETRIES.stall_seconds) if is_url(path) else None


def _stat(path: str, remote: RemoteFile | None) -> File:
    if remote is not None:
        try:
            return File(path, *with_retries(remote.stat, RETRIES))
        except RequestError as error:
            raise UserError(f"{redact_url(path)}: cannot be read ({error})") from error
    if _is_special(path):
        raise UserError(f"{path}: is a pipe, a socket or a device, not a file")
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            digest = xxhash.xxh64(file.read(_TAG_BYTES))
            file.seek(max(0, status.st_size - _TAG_BYTES))
            digest.update(file.read(_TAG_BYTES))
    except OSError as error:
        raise cannot_read(Path(path), error) from error
    return File(path, status.st_size, digest.hexdigest(), status.st_mtime_ns)


def _without_linked_twice(paths: Sequence[str]) -> list[str]:
    """The paths without links to files that are among them under another name."""
    links = {path for path in paths if not is_url(path) and os.path.islink(path)}
    if not links:
        return list(paths)
    found = {os.path.realpath(path) for path in paths if path not in links and not is_url(path)}
    kept = []
    for path in paths:
        target = os.path.realpath(path) if path in links else None
        if target is None or target not in found:
            kept.append(path)
        if target is not None:
            found.add(target)
    return kept


def _patterns(spec: schema.Source) -> list[str]:
    return [spec.path] if isinstance(spec.path, str) else spec.path or []


def _paths(spec: schema.Source, setting: str) -> Iterator[str]:
    if spec.type == "stdlib":
        root = sysconfig.get_paths()["stdlib"]
        found = list(_walk(root, (".py",), _STDLIB_LEAVES_OUT))
        if not found:
            raise UserError(f"{setting}: {root} has no *.py files: this Python lacks its library's source")
        yield from found
        return
    patterns = _hub_files(spec, setting) if spec.type == "hub" else _patterns(spec)
    if not patterns:
        raise UserError(
            f"{setting}.path: a {spec.type} source needs a file, a folder, a glob pattern or a URL"
        )
    suffixes = _SUFFIXES.get(spec.type, ("",))
    kinds = " or ".join(f"*{suffix}" for suffix in suffixes) + " " if suffixes != ("",) else ""
    for pattern in patterns:
        pattern = pattern.removeprefix("file://")
        names = (_match_remote if is_url(pattern) else _match)(pattern, suffixes, setting)
        if not names:
            raise UserError(f"{setting}.path: {redact_url(pattern)} holds no {kinds}files")
        yield from names


def _match(pattern: str, suffixes: tuple[str, ...], setting: str) -> list[str]:
    # A name that exists is taken as it is, even where it has the signs of a pattern: data[1].txt.
    names = [pattern] if may_exist(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not names:
        what = "nothing matches" if glob.has_magic(pattern) else "there is no"
        raise UserError(f"{setting}.path: {what} {pattern} (looked from {os.getcwd()})")
    found: list[str] = []
    for path in map(os.path.abspath, names):
        found += _walk(path, suffixes) if os.path.isdir(path) else [path]
    return found


def _walk(root: str, suffixes: tuple[str, ...], leave_out: frozenset[str] = frozenset()) -> Iterator[str]:
    """Files in and under a folder; a folder that links lead to more than once is read once."""

    def unreadable(error: OSError) -> None:
        raise cannot_read(Path(error.filename), error) from error

    seen = set[str]()  # links may lead round in a circle
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Sorted: of two ways to one folder the same is taken on every machine.
        folders[:] = sorted(name for name in folders if name not in leave_out and not name.startswith("."))
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(suffixes) and not name.startswith(".") and not _is_special(path):
                yield path


def _is_special(path: str) -> bool:
    """Whether a path is a pipe, a socket or a device, of which reading may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False  # such as a link that leads nowhere: reported when it is opened
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _match_remote(pattern: str, suffixes: tuple[str, ...], setting: str) -> list[str]:
    filesystem, path = open_filesystem(pattern, RETRIES.stall_seconds)
    parts = urlsplit(pattern)
    if parts.scheme.lower() in WEB and not set("*[") & set(parts.path):
        return [pattern]  # a web server has no folders
    try:
        found = with_retries(lambda: _find(filesystem, path, suffixes), RETRIES)
    except RequestError as error:
        raise UserError(f"{setting}.path: {redact_url(pattern)} cannot be listed ({error})") from error
    return [filesystem.unstrip_protocol(name) for name in found]


def _find(filesystem: Any, path: str, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files that a path, a folder or a pattern stands for."""
    try:
        infos = filesystem.glob(path, detail=True) if glob.has_magic(path) else {path: filesystem.info(path)}
    except FileNotFoundError:
        return []
    found: list[str] = []
    for name, info in infos.items():
        if name != path and _is_hidden(name, path):
            continue
        if info["type"] != "directory":
            found.append(name)
            continue
        below = [file for file in filesystem.find(name) if file.endswith(suffixes)]
        found += [file for file in below if not _is_hidden(file, name)]
    return [file for file in found if not file.endswith("/")]  # an empty object that marks a folder


def _is_hidden(name: str, pattern: str) -> bool:
    """Whether a part of a name begins with a dot, and is not in the pattern."""
    return any(part.startswith(".") for part in set(name.split("/")) - set(pattern.split("/")))


def _hub_files(spec: schema.Source, setting: str) -> list[str]:
    """Files of a split of a dataset of the hub, or of a local folder that is laid out like one."""
    if not spec.dataset:
        raise UserError(
            f"{setting}.dataset: a hub source needs a dataset's id, or a folder laid out like one"
        )
    import datasets

    what = f"{spec.dataset}{f' ({spec.subset})' if spec.subset else ''}"
    try:
        builder = datasets.load_dataset_builder(spec.dataset, spec.subset, revision=spec.revision)
        files = dict(builder.config.data_files or {})
    except Exception as error:  # of many kinds: no such dataset, no network, no permission, a broken card
        remedy = "check the id, the subset and the network"
        raise UserError(
            f"{setting}.dataset: {what} cannot be opened ({one_line(error)}); {remedy}"
        ) from error
    if spec.split not in files:
        has = f"it has {', '.join(map(str, files))}" if files else "it has no data files"
        raise UserError(f"{setting}.split: {what} has no split {spec.split!r}; {has}")
    paths = [str(path) for path in files[spec.split]]
    for path in paths:
        if not _is_of_dataset(path, spec.dataset):
            raise UserError(
                f"{setting}.dataset: {what} names {redact_url(path)}, which is no file of the dataset"
            )
    return paths


def _is_of_dataset(path: str, dataset: str) -> bool:
    """Whether a file lies in a dataset; its card may name any file, of this machine or elsewhere."""
    if not os.path.isdir(dataset):
        start = f"hf://datasets/{dataset.removeprefix('hf://datasets/')}@"
        return path.startswith(start) and ".." not in path.split("/")
    root = Path(os.path.realpath(dataset))
    homes = [root]
    if root.parent.name == "snapshots":  # of the hub's cache, where files are links to those in blobs
        homes.append(root.parent.parent / "blobs")
    return not is_url(path) and any(Path(os.path.realpath(path)).is_relative_to(home) for home in homes)
