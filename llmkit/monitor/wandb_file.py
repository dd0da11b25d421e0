"""Reads .wandb files, wandb's log of a run on this disk; wandb ships no reader for them.

A 7-byte header (":W&B", magic, version), then 32 KiB blocks of chunks as in LevelDB's log: crc32 over type
and data, uint16 length, uint8 type (1 whole, 2 first, 3 middle, 4 last). Joined, the chunks of a record are
one protobuf message.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HEADER, CHUNK, BLOCK = 7, 7, 32768


class OnDisk(NamedTuple):
    """How many lines of its history a run has, counted from its first start, and the last one of them."""

    lines: int
    row: dict[str, Any]


def newest_on_disk(run_dir: Path, run_id: str) -> OnDisk | None:
    """What wandb's files of the newest start hold.

    None where they are those of another run or of a start that was online, or hold no line: then nothing is
    known.
    """
    folder = _newest_start(run_dir / "wandb")
    if folder is None or not (folder.name.startswith("offline-") and folder.name.endswith(f"-{run_id}")):
        return None
    rows = [row for file in folder.glob("run-*.wandb") for row in history(file)]
    return OnDisk(rows[-1]["_step"] + 1, rows[-1]) if rows else None


def _newest_start(folder: Path) -> Path | None:
    """wandb's folder of the newest start: where its link says so, as the clock of the names may be wrong."""
    link = folder / "latest-run"
    if link.is_symlink() and link.is_dir() and (newest := link.resolve()).parent == folder.resolve():
        return newest
    starts = sorted(folder.glob("*run-*-*"), key=lambda path: path.name.split("run-", 1)[1])
    return starts[-1] if starts else None


def mark_as_synced(run_dir: Path) -> None:
    """Has `wandb sync` leave out what was recorded offline."""
    for file in run_dir.glob("wandb/offline-run-*/run-*.wandb"):
        file.with_name(f"{file.name}.synced").touch()


def history(path: Path) -> Iterator[dict[str, Any]]:
    """The logged rows of a file, up to where it is torn; with W&B's own count of lines as `_step`."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            yield {**{key: json.loads(value) for key, value in row.items()}, "_step": record.history.step.num}


def records(path: Path) -> Iterator[Any]:
    """All records of a file, as protobuf messages of wandb."""
    from wandb.proto import wandb_internal_pb2

    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        yield record


def _payloads(data: bytes) -> Iterator[bytes]:
    if data[:4] != b":W&B":
        return
    position, partial = HEADER, b""
    while position + CHUNK <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK:  # too small for a chunk: padding
            position += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, position)
        body = data[position + CHUNK : position + CHUNK + length]
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != crc:
            return  # damaged, or torn
        position += CHUNK + length
        partial = body if kind in (1, 2) else partial + body
        if kind in (1, 4):
            yield partial
