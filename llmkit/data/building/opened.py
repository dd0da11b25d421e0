"""What was built of a source, opened: its folder of the cache with token shards and a record of the build."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llmkit.data.building.cache import opening_cache
from llmkit.data.shards.reader import ShardReader
from llmkit.data.source import Source
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import read_sealed

BUILD_VERSION = 3
"""Changes with anything that makes the same sources give other folders."""


class SourceRecord(BaseModel):
    """What was built of a source: whether it has held-out documents, and what was left out, by reason.

    duplicates: documents that are exact copies of others; None = not counted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    version: Literal[2, 3, 4] = 4
    """3 = with a checksum over itself, 4 = may have counted duplicates."""
    heldout: bool
    left_out: dict[str, int]
    duplicates: int | None = None


def open_built(source: Source, folder: Path, tokenizer: Tokenizer) -> Source:
    """The source with what `folder` has of it: training tokens unless it is a live one, and held-out ones.

    Raises UserError where something is damaged or of another tokenizer.
    """
    remedy = rebuild_remedy(folder)
    with opening_cache():
        try:
            record = SourceRecord.model_validate(read_sealed(folder / "source.json", remedy, first=3))
        except ValidationError as error:
            raise UserError(f"{folder / 'source.json'}: of another version or damaged; {remedy}") from error
        known = tokenizer.vocab_size, tokenizer.hash, remedy, tokenizer.end_of_text_id
        train = ShardReader(folder / "train", *known) if source.live_reader is None else None
        heldout = ShardReader(folder / "heldout", *known) if record.heldout else None
    return dataclasses.replace(
        source, folder=folder, left_out=record.left_out, duplicates=record.duplicates, stored=train,
        heldout=heldout,
    )  # fmt: skip


def rebuild_remedy(folder: Path) -> str:
    """What to do where a folder of the cache is damaged, for messages."""
    return f"delete {folder} and build the data again"
