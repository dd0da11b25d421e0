"""Reads the rows of a .wandb transaction log (wandb ships no reader for it).

A 7-byte header (":W&B", magic, version), then 32 KiB blocks of chunks as in LevelDB's log: crc32 over
type and data, uint16 length, uint8 type (1 whole, 2 first, 3 middle, 4 last). Joined, the chunks of a
record are one protobuf message.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, CHUNK, BLOCK = 7, 7, 32768


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows of the file, up to where it is torn."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def _payloads(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B", "not a .wandb file"
    position, partial = HEADER, b""
    while position + CHUNK <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK:  # too small for a chunk: padding
            position += left
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, position)
        body = data[position + CHUNK : position + CHUNK + length]
        if len(body) < length or zlib.crc32(body, zlib.crc32(bytes([kind]))) != crc:
            return
        position += CHUNK + length
        partial = body if kind in (1, 2) else partial + body
        if kind in (1, 4):
            yield partial
