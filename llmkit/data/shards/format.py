"""The format of token shards: the tokens of a collection of documents as flat files with checksums.

A folder holds `index.json`, with a checksum over itself, and for each shard `NAME-00000.bin` (little-endian
uint16 or uint32 tokens) and `NAME-00000.idx` (uint64 offset of each document's first token in the shard, then
the shard's length).
The shards one after the other are the token stream: end-of-text, then every document followed by
end-of-text. Where some tokens of a shard are no targets of the loss there is `NAME-00000.mask`, a bit a
token: bit j (little-endian in its byte) says whether token j of the shard is a target as a label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from llmkit.errors import UserError
from llmkit.files import read_sealed

VERSION = 2
"""Of what is written; version 1 is read, too: it is the same without the checksum of index.json."""
BLOCK_BYTES = 4194304
"""Bytes under one checksum."""

Count = Annotated[int, Field(ge=0)]
Suffix = Literal["bin", "idx", "mask"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShardRecord(_Record):
    """What the index says of one shard; hashes are xxh64.

    blocks: of each BLOCK_BYTES of the token file. offsets: of the file of documents' offsets. mask: of each
    BLOCK_BYTES of the target bits; empty = there are none, every token is a target.
    """

    tokens: Annotated[int, Field(ge=1)]
    documents: Count
    max_id: Count
    bytes: Count
    blocks: list[Hash]
    offsets: Hash
    mask: list[Hash] = []


class Index(_Record):
    """Content of index.json. text_bytes: UTF-8 bytes of the text to learn. extra: what the writer adds."""

    version: Literal[1, 2] = 2
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    dtype: Literal["uint16", "uint32"]
    vocab_size: Annotated[int, Field(ge=1, le=1 << 32)]
    end_of_text_id: Count
    tokenizer: str
    block_bytes: Literal[4194304] = 4194304
    text_bytes: Count
    shards: Annotated[list[ShardRecord], Field(min_length=1)]
    extra: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dtype != token_dtype(self.vocab_size):
            raise ValueError(f"dtype {self.dtype} does not go with a vocabulary of {self.vocab_size} tokens")
        item = stored_dtype(self.dtype).itemsize
        for shard, record in enumerate(self.shards):
            masks = blocks_of(mask_bytes(record.tokens)) if record.mask else 0
            expected = (record.tokens * item, blocks_of(record.bytes), masks)
            if (record.bytes, len(record.blocks), len(record.mask)) != expected:
                raise ValueError(f"the figures of shard {shard} contradict each other")
        return self

    @property
    def tokens(self) -> int:
        """Length of the stream, end-of-text tokens included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.documents for shard in self.shards)


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Smallest type that holds every id of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def stored_dtype(name: Literal["uint16", "uint32"]) -> np.dtype:
    """The type of tokens on disk."""
    return np.dtype(name).newbyteorder("<")


def blocks_of(size: int) -> int:
    """Blocks with a checksum that so many bytes have."""
    return -(-size // BLOCK_BYTES)


def mask_bytes(tokens: int) -> int:
    """Bytes of the target bits of so many tokens."""
    return -(-tokens // 8)


def shard_name(name: str, shard: int, suffix: Suffix) -> str:
    """File name of a shard."""
    return f"{name}-{shard:05d}.{suffix}"


def read_index(folder: Path, remedy: str) -> Index:
    """The index of a folder; raises UserError, ending in `remedy`, if it is missing, broken or too new."""
    path = folder / "index.json"
    content = read_sealed(path, remedy, first=VERSION)
    version = content.get("version")
    if version not in (1, VERSION):
        raise UserError(f"{path}: format version {version!r}, this llmkit reads 1 and {VERSION}; {remedy}")
    try:
        return Index.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{key}." for key in first["loc"]).rstrip(".")
        what = f"{where}: {first['msg']}" if where else str(first["ctx"]["error"])
        raise UserError(f"{path}: {what}, the file is damaged; {remedy}") from error
