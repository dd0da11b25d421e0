"""The format of a checkpoint on disk.

A checkpoint is a folder `step-00000100`. Its tensors are in safetensors files, its tokenizer and the like in
files of their own. `index.safetensors` (see `index.py`) lists the files with tensors and where in the full
tensors their pieces belong. `manifest.json`, written last, has the state of the run and lists all other
files. Each file is listed with its size and a checksum for each block. The manifest is JSON in one fixed
form with a checksum over itself, so that any changed bit is found. Nothing here is ever unpickled or
executed.

Version 1 had no index: its manifest listed every piece (see `format_v1.py`).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmkit.errors import RunFault

MANIFEST = "manifest.json"
INDEX = "index.safetensors"
TOKENIZER = "tokenizer.json"
BLOCK: Final = 4194304
"""Bytes under one checksum: the least that must be read to verify any byte of it."""
MAX_MANIFEST = 2**30
_EDITED = "it was edited, or is damaged; bring the original file back"
MAX_STEP = 10**8 - 1
REPLACED = ".replaced-"
"""Prefix of a valid checkpoint's name while a new one of the same step replaces it."""
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
DtypeName = Literal["F64", "F32", "BF16", "F16", "I64", "I32", "U8"]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Damaged(RunFault):
    """A checkpoint, or a file of it, differs from what was written; the message names it and the
    difference."""


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


class Contents(_Entry):
    """The fields of a manifest in every version; its own checksum is not among them."""

    format: Literal["llmkit-checkpoint"]
    step: Annotated[int, Field(ge=0, le=MAX_STEP)]
    versions: dict[str, str]
    tokenizer_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    model: dict[str, Any]
    config: dict[str, Any]
    state: dict[str, Any]
    block: Literal[4194304]
    files: list[FileEntry]

    @model_validator(mode="after")
    def _each_file_once(self) -> Contents:
        names = {file.name for file in self.files}
        if len(names) != len(self.files) or MANIFEST in names:
            raise ValueError("a file is listed twice, or the manifest lists itself")
        return self


class Manifest(Contents):
    """The content of `manifest.json`. `files` are those without pieces; `index` lists the others."""

    version: Literal[2]
    index: FileEntry

    def encode(self) -> bytes:
        """The bytes of `manifest.json`."""
        content = self.model_dump(mode="json")
        return canonical({**content, "checksum": xxhash.xxh64(canonical(content)).hexdigest()})


def decode_content(raw: bytes) -> dict[str, Any]:
    """The fields of a manifest of any version. Raises ValueError for bytes that no version has written."""
    try:
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        if canonical(content) != raw:
            raise ValueError(f"it is not in the form it was written in: {_EDITED}")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if content.pop("checksum", None) != xxhash.xxh64(canonical(content)).hexdigest():
        raise ValueError(f"its checksum is wrong: {_EDITED}")
    return content


def first_error(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "manifest"
    return f"{where}: {first['msg']}"


def canonical(content: dict[str, Any]) -> bytes:
    """JSON in one fixed form. Raises TypeError or ValueError for what JSON cannot say, NaN included."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
