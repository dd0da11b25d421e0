"""Rows as bytes, on their way from a process that tokenizes."""

from __future__ import annotations

import json
import struct

import numpy as np

from llmkit.data.live.stream import Row
from llmkit.errors import RunFault, UserError

_HEADER = struct.Struct("<BIII")  # kind; tokens; bytes of packed targets; bytes of JSON
_ROW, _FAILURE = 1, 2
_ERRORS: dict[str, type[Exception]] = {each.__name__: each for each in (UserError, RunFault)}

Answer = Row | Exception


def pack(answer: Answer) -> bytes:
    """A row, or the error in its place, as bytes."""
    if isinstance(answer, Row):
        tokens = answer.tokens.tobytes()
        targets = b"" if answer.targets is None else np.packbits(answer.targets).tobytes()
        rest = json.dumps([answer.cursor, answer.left_out, answer.notes]).encode()
        return b"".join(
            (_HEADER.pack(_ROW, answer.tokens.size, len(targets), len(rest)), tokens, targets, rest)
        )
    rest = json.dumps([type(answer).__name__, str(answer)]).encode()
    return _HEADER.pack(_FAILURE, 0, 0, len(rest)) + rest


def unpack(content: bytes, wanted: bool = True) -> Answer:
    """What was packed; a row that is not wanted comes without its tokens."""
    kind, count, targets_bytes, rest_bytes = _HEADER.unpack_from(content)
    rest = json.loads(content[len(content) - rest_bytes :])
    if kind == _FAILURE:
        name, text = rest
        return _ERRORS.get(name, RuntimeError)(text)
    cursor, left_out, notes = rest
    tokens = np.frombuffer(content, dtype=np.int32, count=count if wanted else 0, offset=_HEADER.size)
    targets = None
    if wanted and targets_bytes:
        packed = np.frombuffer(content, dtype=np.uint8, count=targets_bytes, offset=_HEADER.size + 4 * count)
        targets = np.unpackbits(packed, count=count - 1).astype(bool)
    return Row(tokens, targets, cursor, left_out, tuple(notes))
