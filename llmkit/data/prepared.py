"""A built folder of token shards, opened for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from xxhash import xxh64_hexdigest

from llmkit.config import schema
from llmkit.data.shards.format import Index
from llmkit.data.shards.reader import ShardReader
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import read_json

BUILD_VERSION = 1
"""Changes with anything that makes the same sources give other folders."""

SOURCE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class SourceRecord(BaseModel):
    """What was built of a source: whether it has held-out documents, and what was left out, by reason."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    heldout: bool
    left_out: dict[str, int]


class Manifest(BaseModel):
    """Content of build.json, by name of the source."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    version: Literal[1] = 1
    sources: dict[Annotated[str, Field(pattern=SOURCE_NAME)], SourceRecord]


@dataclass(frozen=True)
class TrainSource:
    """A source's training tokens, and its share of the rows relative to the other sources."""

    name: str
    reader: ShardReader
    weight: float


@dataclass(frozen=True)
class HeldOutSource:
    """A source's held-out tokens; `reader.index.extra` has `xz_bits_per_byte` and `gzip_bits_per_byte`."""

    name: str
    reader: ShardReader


@dataclass(frozen=True)
class Prepared:
    """All that training and evaluation read.

    heldout: sources that have held-out documents, maybe none. left_out: for each source, how many
    documents were left out or mended, by reason. fingerprint: what the order of the rows depends on, by
    content and not by path; JSON.
    """

    folder: Path
    tokenizer: Tokenizer
    train: tuple[TrainSource, ...]
    heldout: tuple[HeldOutSource, ...]
    left_out: dict[str, dict[str, int]]
    sequence_length: int
    document_masks: bool
    fingerprint: dict[str, Any]

    @property
    def train_tokens(self) -> int:
        """Training tokens of all sources, end-of-text included."""
        return sum(source.reader.tokens for source in self.train)

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the training documents."""
        return sum(source.reader.index.text_bytes for source in self.train)

    @property
    def heldout_bytes(self) -> int:
        """UTF-8 bytes of the held-out documents."""
        return sum(source.reader.index.text_bytes for source in self.heldout)

    def samples(self, count: int) -> Iterator[tuple[str, str]]:
        """(source name, text) of the first `count` training documents of each source, decoded from tokens."""
        for source in self.train:
            for number in range(min(count, source.reader.index.documents)):
                yield source.name, self.tokenizer.decode(source.reader.document(number))


def open_prepared(folder: Path, config: schema.Data, names: list[str]) -> Prepared:
    """Open what `build.prepare` built; `names` are the sources' names in the settings' order.

    Raises UserError if the folder is damaged, or if a source's training text does not fill one row.
    """
    manifest = _read_manifest(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer", _remedy(folder))
    train, heldout = [], []
    for name, spec in zip(names, config.sources, strict=True):
        reader = _open(folder, "train", name, tokenizer)
        if reader.row_count(config.sequence_length) == 0:
            raise UserError(
                f"source {name}: its {reader.tokens} training tokens do not fill one row of "
                f"{config.sequence_length}; give it more text or lower data.sequence_length"
            )
        train.append(TrainSource(name, reader, spec.weight))
        if manifest.sources[name].heldout:
            heldout.append(HeldOutSource(name, _open(folder, "heldout", name, tokenizer)))
    digests = {source.name: _digest(source.reader.index) for source in heldout}
    return Prepared(
        folder=folder,
        tokenizer=tokenizer,
        train=tuple(train),
        heldout=tuple(heldout),
        left_out={name: manifest.sources[name].left_out for name in names},
        sequence_length=config.sequence_length,
        document_masks=config.document_masks,
        fingerprint={
            "tokenizer": tokenizer.hash,
            "sequence_length": config.sequence_length,
            "document_masks": config.document_masks,
            "sources": [
                {
                    "name": source.name,
                    "tokens": source.reader.tokens,
                    "digest": _digest(source.reader.index),
                    "heldout": digests.get(source.name),
                }
                for source in train
            ],
        },
    )


def verify(folder: Path, report: Callable[[str], None]) -> None:
    """Check every checksum of a built folder; raises UserError that names the first damaged file."""
    manifest = _read_manifest(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer", _remedy(folder))
    for name, source in manifest.sources.items():
        for split in ("train", "heldout") if source.heldout else ("train",):
            reader = _open(folder, split, name, tokenizer)
            blocks = reader.verify()
            report(f"{name}/{split}: {reader.tokens:,} tokens in {blocks} blocks are as they were written")


def _open(folder: Path, split: str, name: str, tokenizer: Tokenizer) -> ShardReader:
    return ShardReader(folder / split / name, tokenizer.vocab_size, tokenizer.hash, _remedy(folder))


def _remedy(folder: Path) -> str:
    return f"delete {folder} and build the data again"


def _read_manifest(folder: Path) -> Manifest:
    path = folder / "build.json"
    try:
        return Manifest.model_validate(read_json(path, _remedy(folder)))
    except ValidationError as error:
        raise UserError(f"{path}: of another version or damaged; {_remedy(folder)}") from error


def _digest(index: Index) -> str:
    """One hash of all the tokens."""
    return xxh64_hexdigest(" ".join(block for shard in index.shards for block in shard.blocks).encode())
