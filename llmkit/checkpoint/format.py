"""How a checkpoint lies on disk.

A checkpoint is a folder `step-00000100`. Its tensors are in safetensors files, its tokenizer and the
like in files of their own, and `manifest.json`, written last, lists everything: each file with its size
and a checksum for each block, each piece with its place in the full tensor, and the state of the run.
The manifest is JSON in one fixed form with a checksum over itself, so that any changed bit is found.
Nothing here is ever unpickled or executed.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmkit import __version__
from llmkit.checkpoint.pieces import check_piece
from llmkit.errors import RunFault
from llmkit.parallel.slices import Shape

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
BLOCK: Final = 4194304
"""Bytes under one checksum: what a reader has to read to trust any byte in it."""
MAX_MANIFEST = 2**30
MAX_STEP = 10**8 - 1
REPLACED = ".replaced-"
"""Before the name of a whole checkpoint while a new one of the same step takes its place."""
FOLDER = re.compile(r"step-(\d{8})", re.ASCII)
FILE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
"""The element types that can be stored, by their names in safetensors."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Count = Annotated[int, Field(ge=0, le=2**53)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
FileName = Annotated[str, Field(pattern=FILE_NAME.pattern)]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}$")]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Damaged(RunFault):
    """A checkpoint, or a file of it, that is not what was written; the message names it and says why."""


class OtherFormatError(ValueError):
    """A manifest as it was written, in a format that this version does not read."""


def folder_name(step: int) -> str:
    """`step-00000100` for 100."""
    if not 0 <= step <= MAX_STEP:
        raise ValueError(f"step {step} is not between 0 and {MAX_STEP}")
    return f"step-{step:08d}"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Entry):
    """A file: its size in bytes and the checksum of each block of it."""

    name: FileName
    size: Count
    xxh64: list[Checksum]

    @model_validator(mode="after")
    def _a_checksum_a_block(self) -> FileEntry:
        if len(self.xxh64) != -(-self.size // BLOCK):
            raise ValueError(f"{len(self.xxh64)} checksums for {self.size} bytes")
        return self


class PieceEntry(_Entry):
    """A piece (see `pieces.Piece`), and the tensor `key` of the safetensors file that holds it."""

    name: TensorName
    kind: Kind
    shape: tuple[Count, ...]
    box: tuple[tuple[Count, Count], ...]
    range: tuple[Count, Count]
    dtype: Literal["F64", "F32", "BF16", "F16", "I64", "I32", "U8"]
    file: FileName
    key: str

    @model_validator(mode="after")
    def _inside(self) -> PieceEntry:
        check_piece(self.shape, self.box, self.range)
        return self


class Manifest(_Entry):
    """What `manifest.json` says, its own checksum aside."""

    format: Literal["llmkit-checkpoint"]
    version: Literal[1]
    step: Annotated[int, Field(ge=0, le=MAX_STEP)]
    versions: dict[str, str]
    tokenizer_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    model: dict[str, Any]
    config: dict[str, Any]
    state: dict[str, Any]
    block: Literal[4194304]
    files: list[FileEntry]
    pieces: list[PieceEntry]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = {file.name for file in self.files}
        if len(names) != len(self.files) or MANIFEST in names:
            raise ValueError("a file is listed twice, or the manifest lists itself")
        known: dict[tuple[str, str], tuple[Shape, str]] = {}
        for piece in self.pieces:
            if piece.file not in names:
                raise ValueError(f"{piece.name} is in {piece.file}, which is not listed")
            mine = (piece.shape, piece.dtype)
            if known.setdefault((piece.kind, piece.name), mine) != mine:
                raise ValueError(f"pieces of {piece.kind} {piece.name} differ in shape or dtype")
        return self

    def encode(self) -> bytes:
        """The bytes of `manifest.json`."""
        content = self.model_dump(mode="json")
        return canonical({**content, "checksum": xxhash.xxh64(canonical(content)).hexdigest()})

    @staticmethod
    def decode(raw: bytes) -> Manifest:
        """The manifest that `encode` wrote; ValueError (one line) for any other bytes.

        Raises OtherFormatError for a whole manifest of another version of the format.
        """
        try:
            content = json.loads(raw)
            if not isinstance(content, dict):
                raise ValueError("it is not a JSON object")
            if canonical(content) != raw:
                raise ValueError("it is not in the form it was written in")
            if content.pop("checksum", None) != xxhash.xxh64(canonical(content)).hexdigest():
                raise ValueError("its checksum is wrong")
            if content.get("version", 1) != 1:
                raise OtherFormatError(
                    f"llmkit {content.get('versions', {}).get('llmkit')} wrote it in format version "
                    f"{content['version']!r}, this llmkit {__version__} reads version 1"
                )
            return Manifest.model_validate_json(canonical(content))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise ValueError(f"{place}: {first['msg']}") from None
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def canonical(content: dict[str, Any]) -> bytes:
    """JSON in one fixed form. Raises TypeError or ValueError for what JSON cannot say, NaN included."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
