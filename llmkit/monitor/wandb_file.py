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
from typing import Any

HEADER, CHUNK, BLOCK = 7, 7, 32768


def lines_on_disk(run_dir: Path) -> int | None:
    """How many lines of the run's history wandb's newest files hold, counted from its first start.

    None where they are those of a start that was online, or hold no line: then nothing is known.
    """
    folders = sorted(run_dir.glob("wandb/*run-*-*"), key=lambda path: path.name.split("run-", 1)[1])
    if not folders or not folders[-1].name.startswith("offline-"):
        return None
    steps = [row["_step"] for file in folders[-1].glob("run-*.wandb") for row in history(file)]
    return steps[-1] + 1 if steps else None


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
