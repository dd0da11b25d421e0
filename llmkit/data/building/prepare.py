"""Builds token shards from text, once: what is already built is opened."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from llmkit.config import schema
from llmkit.data.building.corpus import Report, write_corpus
from llmkit.data.prepared import BUILD_VERSION, Prepared, open_prepared
from llmkit.data.sources.documents import Documents
from llmkit.errors import RunFault, UserError
from llmkit.files import sync_folder


def prepare(config: schema.Data, report: Report = print) -> Prepared:
    """The data of the settings, built into a folder of `cache_dir` if it is not there.

    Any number of processes may call this at once: one builds, the others wait for it. A build that dies
    leaves nothing that is taken for data. `report` gets lines of progress.
    Raises UserError for mistakes in the settings or the text, RunFault if the folder cannot be written.
    """
    sources = _open_sources(config)
    key = _content_key(config, sources)
    cache = Path(config.cache_dir)
    folder = cache / key
    if not folder.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"data.cache_dir: {cache} cannot be made a folder ({error.strerror})") from error
        with _only_builder(cache / f".{key}.lock", folder, report) as alone:
            if not folder.exists():
                _build_aside(config, sources, folder, alone, report)
    prepared = open_prepared(folder, config, [source.name for source in sources])
    report(
        f"data: {folder}: {prepared.train_tokens:,} training tokens of {prepared.train_bytes / 1e6:.2f} MB, "
        f"{prepared.heldout_bytes / 1e6:.2f} MB held out"
    )
    return prepared


def _open_sources(config: schema.Data) -> list[Documents]:
    names = [spec.name or f"{spec.type}-{i}" for i, spec in enumerate(config.sources)]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"data.sources: {count} sources are named {name!r}; give each its own name")
    return [
        Documents(spec, name, f"data.sources[{i}]", config.errors)
        for i, (spec, name) in enumerate(zip(config.sources, names, strict=True))
    ]


def _content_key(config: schema.Data, sources: list[Documents]) -> str:
    """Hash of all that decides the content of the folder; files count by path, size and time of change."""
    tokenizer: dict[str, JsonValue] = config.tokenizer.model_dump()
    if config.tokenizer.path is not None:
        with contextlib.suppress(OSError):  # a file that is missing is reported where it is read
            tokenizer["path"] = hashlib.sha256(Path(config.tokenizer.path).read_bytes()).hexdigest()
    described: dict[str, JsonValue] = {
        "version": BUILD_VERSION,
        "tokenizer": tokenizer,
        "errors": config.errors,
        "heldout_every": config.heldout_every,
        "sources": [_describe(source) for source in sources],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _describe(source: Documents) -> JsonValue:
    files: list[JsonValue] = []
    for path in source.files:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        files.append([str(path), status.st_size, status.st_mtime_ns])
    spec = source.spec
    return [source.name, spec.type, spec.text_field, spec.separator, files]


@contextlib.contextmanager
def _only_builder(lock: Path, folder: Path, report: Report) -> Iterator[bool]:
    """Waits until no other process holds the lock; yields whether the file system has locks at all.

    The system frees the lock of a process that dies. Without locks several may build at once, which
    wastes work and harms nothing: the first to finish wins.
    """
    try:
        file = lock.open("a")
    except OSError as error:
        raise UserError(f"data.cache_dir: {lock.parent} cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"data: another process builds {folder}, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


def _build_aside(
    config: schema.Data, sources: list[Documents], folder: Path, alone: bool, report: Report
) -> None:
    """Build under another name and rename; leftovers of builds that died are removed."""
    if alone:
        for leftover in folder.parent.glob(f".building-{folder.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    aside = folder.with_name(f".building-{folder.name}-{uuid.uuid4().hex[:12]}")
    try:
        aside.mkdir()
        write_corpus(config, sources, aside, report)
        if _content_key(config, _open_sources(config)) != folder.name:
            raise UserError("data.sources: files changed while they were read; run the same command again")
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.exists():  # where it does, another process was first
                raise
        sync_folder(folder.parent)
    except OSError as error:
        raise RunFault(f"{aside}: cannot be written ({error.strerror}); is the disk full?") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
