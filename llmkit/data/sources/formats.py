"""How the files of a source are laid out, by the source's type and a file's name."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from llmkit.config import schema
from llmkit.data.sources.custom import CustomSpec
from llmkit.data.sources.urls import redact_url
from llmkit.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffix of a compressed file: the name Arrow has for it."""

_HUB_SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
}
_FILE_TYPES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
"""Type of a source by the suffix of its files; others are text."""
_OTHER_COMPRESSIONS = frozenset({".bz2", ".xz", ".zip", ".lz4", ".7z", ".rar", ".tar", ".tgz"})


class Format(NamedTuple):
    """How a file is cut into records.

    kind: document = the file is one; lines = what is between separators; parquet, arrow = rows; records =
    those of a registered source. is_json: JSON objects, not text. compression: Arrow's name of it.
    """

    kind: Literal["document", "lines", "parquet", "arrow", "records"]
    separator: bytes = b""
    is_json: bool = False
    compression: str | None = None


def format_of(spec: schema.Source, path: str) -> Format:
    """The format of a file; raises UserError where it cannot be read.

    >>> format_of(schema.Source(type="jsonl"), "a.jsonl.gz")
    Format(kind='lines', separator=b'\\n', is_json=True, compression='gzip')
    """
    if isinstance(spec, CustomSpec):
        return Format("records")
    name, (suffix, compression) = redact_url(path), suffixes_of(path)
    kind: str = spec.type
    if kind == "hub":
        if "::" in path or suffix not in _HUB_SUFFIXES:
            raise UserError(
                f"{name}: files of this kind are not read; of a dataset's files those that end in "
                f"{', '.join(sorted(_HUB_SUFFIXES))} are, the last five also with .gz or .zst"
            )
        kind = _HUB_SUFFIXES[suffix]
    if kind == "parquet":
        return Format("parquet")
    if kind == "arrow":
        return Format("arrow")
    if suffix in _OTHER_COMPRESSIONS:
        raise UserError(f"{name}: {suffix} is not unpacked; compress it as .zst or .gz, or not at all")
    if kind == "jsonl":
        return Format("lines", b"\n", True, compression)
    if spec.record != "text":
        raise UserError(f"{name}: is text, which holds no records of the kind {spec.record}")
    if spec.type == "hub":  # a line is a row, as `datasets` reads these files
        return Format("lines", b"\n", False, compression)
    if spec.separator:
        return Format("lines", spec.separator.encode(), False, compression)
    return Format("document", compression=compression)


def suffixes_of(path: str) -> tuple[str, str | None]:
    """A file's suffix in small letters, without that of a compression, and the compression."""
    is_web = path.lower().startswith(("http://", "https://"))  # elsewhere, ? and # are part of the name
    name = PurePosixPath(urlsplit(path).path if is_web else path)
    compression = COMPRESSIONS.get(name.suffix.lower())
    return (name.with_suffix("") if compression else name).suffix.lower(), compression


def type_of_files(path: str) -> str:
    """The type of a source by its files; of a folder, by the first file in it."""
    local = Path(path)
    if (local / "index.json").exists():
        return "shards"
    names = [path]
    if local.is_dir():
        names = [name for _, _, files in os.walk(local) for name in sorted(files) if name[0] != "."]
    return _FILE_TYPES.get(suffixes_of(names[0])[0], "text") if names else "text"
