"""The log-probabilities of pairs under the reference model, computed once and kept in the data cache.

Of each source a folder `NAME-reference-KEY`, where KEY is a hash of the reference's weights and of the
tokens: `reference.json`, and for each split that the source has `SPLIT.f32`, (pairs, 2) little-endian
float32: the chosen and the rejected sequence of each pair, in the order in which pairs are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from xxhash import xxh64_hexdigest

from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.data.building.cache import content_key, opening_cache
from llmkit.data.prepared import PreparedData
from llmkit.data.shards.dataset import TokenDataset
from llmkit.errors import UserError
from llmkit.files import cannot_read, may_exist, read_sealed, sync_folder, write_atomic, write_sealed

VERSION = 1
DTYPE = np.dtype("<f4")


class SplitRecord(BaseModel):
    """What reference.json says of a split. checksum: xxh64 of its file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    pairs: Annotated[int, Field(ge=1)]
    checksum: str


class ReferenceRecord(BaseModel):
    """Content of reference.json. model: where the reference lay. precision: that it was computed in."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    version: Literal[1] = 1
    model: str
    digest: str
    precision: str
    splits: dict[str, SplitRecord]


class Pairs(NamedTuple):
    """The pairs of a source. splits: "train", and "heldout" where there are such; folder: of the values."""

    name: str
    splits: dict[str, TokenDataset]
    folder: Path


def reference_path(loaded: Loaded) -> Path:
    """Where the reference model lies."""
    train = loaded.config.train
    path = train.dpo.reference or train.init_from
    assert path is not None, "see check_preference"
    return Path(path)


def pairs_of(data: PreparedData, config: Config, digest: str) -> Iterator[Pairs]:
    """The pairs of each source. digest: of the reference's weights."""
    for source in data.sources:
        assert source.stored is not None, "a live source has no pairs"
        splits: dict[str, TokenDataset] = {"train": source.stored}
        if source.heldout is not None:
            splits["heldout"] = source.heldout
        described: dict[str, JsonValue] = {
            "version": VERSION,
            "reference": digest,
            "tokens": {split: rows.digest for split, rows in splits.items()},
            "row_length": data.sequence_length,
            "document_masks": data.document_masks,
        }
        folder = Path(config.data.cache_dir) / f"{source.name}-reference-{content_key(described)}"
        yield Pairs(source.name, splits, folder)


def with_reference(data: PreparedData, loaded: Loaded, digest: str) -> PreparedData:
    """The data with what the reference of this digest gives for their pairs.

    Raises UserError where that was not computed, or is damaged.
    """
    found = {pairs.name: _read(pairs, loaded) for pairs in pairs_of(data, loaded.config, digest)}
    sources = (
        dataclasses.replace(
            source,
            reference=found[source.name]["train"],
            heldout_reference=found[source.name].get("heldout"),
        )
        for source in data.sources
    )
    fingerprint = data.fingerprint.model_copy(update={"reference": digest})
    return dataclasses.replace(data, sources=tuple(sources), fingerprint=fingerprint)


def write(folder: Path, arrays: dict[str, np.ndarray], record: ReferenceRecord) -> None:
    """Writes the files of a source into a new folder. arrays: (pairs, 2) float32 of each split."""
    folder.mkdir(parents=True)
    splits = {}
    for split, values in arrays.items():
        content = np.ascontiguousarray(values, dtype=DTYPE).tobytes()
        with write_atomic(folder / f"{split}.f32") as file:
            file.write(content)
        splits[split] = SplitRecord(pairs=len(values), checksum=xxh64_hexdigest(content))
    write_sealed(folder / "reference.json", record.model_copy(update={"splits": splits}).model_dump())
    sync_folder(folder)


def _read(pairs: Pairs, loaded: Loaded) -> dict[str, np.ndarray]:
    folder, place = pairs.folder, pairs.folder / "reference.json"
    if not may_exist(place):
        raise _absent(pairs, loaded)
    remedy = f"delete {folder} and compute it again: llmkit reference {loaded.path}"
    with opening_cache():
        try:
            record = ReferenceRecord.model_validate(read_sealed(place, remedy, first=VERSION))
        except ValidationError as error:
            raise UserError(f"{place}: of another version or damaged; {remedy}") from error
    found = {}
    for split, rows in pairs.splits.items():
        path, known = folder / f"{split}.f32", record.splits.get(split)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise cannot_read(path, error, remedy) from error
        if known is None or known.checksum != xxh64_hexdigest(content) or known.pairs != rows.documents:
            raise UserError(f"{path}: does not match reference.json, the file is damaged; {remedy}")
        found[split] = np.frombuffer(content, dtype=DTYPE).reshape(-1, 2)
    return found


def _absent(pairs: Pairs, loaded: Loaded) -> UserError:
    """There are no values, or only those of other pairs or of another reference."""
    others = sorted(pairs.folder.parent.glob(f"{pairs.name}-reference-*"))
    stale = f" ({others[0]} is of other pairs or of another model)" if others else ""
    return UserError(
        f"source {pairs.name}: the log-probabilities of its pairs under the reference model were not "
        f"computed yet{stale}; do that first, with the same overrides: llmkit reference {loaded.path}"
    )
