"""Computes the log-probabilities of a source's pairs under the reference model, shared out over the ranks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from llmkit.batch import Rows, split_pairs
from llmkit.data.building.progress import Progress
from llmkit.data.prepared import PreparedData
from llmkit.data.shards.dataset import TokenDataset
from llmkit.errors import RunFault, UserError
from llmkit.file_lock import FileLock
from llmkit.files import may_exist, sync_folder, write_atomic
from llmkit.model.base import Model
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.preference.reference import DTYPE, Pairs, ReferenceRecord, write
from llmkit.weights import Weights

CHUNK = 1024
"""Pairs of a file of the workplace: what a rank computes at a time, and what a killed command loses."""


class Reference(NamedTuple):
    """The reference model, ready to be asked.

    weights: where it comes from. batch_pairs: pairs of a forward pass. precision: the name of its numbers.
    """

    weights: Weights
    digest: str
    model: Model
    batch_pairs: int
    precision: str


def compute_source(
    pairs: Pairs, data: PreparedData, reference: Reference, mesh: Mesh, report: Callable[[str], None]
) -> None:
    """Makes the folder of a source. Collective; each data-parallel rank computes a share of the chunks.

    Raises UserError where another process makes it.
    """
    with _alone(pairs, mesh) as there:
        if there:  # another process has ended meanwhile
            return
        workplace = pairs.folder.with_name(f".building-{pairs.folder.name}")
        missing = json.loads(on_rank_zero(mesh, lambda: json.dumps(_missing_chunks(pairs, workplace))))
        with _progress(pairs, missing, mesh, report) as done:
            for count in range(0, len(missing), mesh["data"].size):
                place = count + mesh["data"].rank
                _compute_chunks(missing[place : place + 1], workplace, pairs, data, reference, mesh, done)
        on_rank_zero(mesh, lambda: _assemble(pairs, workplace, reference))


@contextmanager
def _alone(pairs: Pairs, mesh: Mesh) -> Iterator[bool]:
    """Keeps others from making the folder of a source; whether it is there already. Collective."""
    locks: list[FileLock] = []

    def take() -> str:
        path = pairs.folder.with_name(f".{pairs.folder.name}.lock")
        other = "choose another data.cache_dir"
        try:
            locks.append(
                FileLock(path, "llmkit reference", what=str(pairs.folder), other=other, elsewhere=other)
            )
        except OSError as error:
            raise UserError(
                f"data.cache_dir: {path} cannot be written ({error.strerror}); {other}"
            ) from error
        return str(int(may_exist(pairs.folder)))

    there = on_rank_zero(mesh, take) == "1"
    try:
        yield there
    finally:
        for lock in locks:
            lock.release()


@contextmanager
def _progress(
    pairs: Pairs, missing: Sequence[tuple[str, int]], mesh: Mesh, report: Callable[[str], None]
) -> Iterator[Callable[[int], object]]:
    """Rank 0 shows how far all ranks are, by its own pairs; gives what takes their number."""
    if mesh.rank > 0:
        yield lambda count: None
        return
    total = sum(rows.documents for rows in pairs.splits.values())
    left = sum(min(CHUNK, pairs.splits[split].documents - first) for split, first in missing)
    with Progress(pairs.name, total, total - left, report, "reference", "computed") as progress:
        yield lambda count: progress.add(count * mesh["data"].size)


def _compute_chunks(
    mine: Sequence[tuple[str, int]],
    workplace: Path,
    pairs: Pairs,
    data: PreparedData,
    reference: Reference,
    mesh: Mesh,
    done: Callable[[int], object],
) -> None:
    """Computes and stores these chunks of a source on each rank. Collective. done: takes numbers of pairs."""
    found = []
    for split, first in mine:  # outside of what follows: tensor-parallel ranks wait for each other
        rows = pairs.splits[split]
        index = np.arange(first, min(first + CHUNK, rows.documents))
        found.append(log_probabilities(rows, index, data, reference, mesh.device, done))
    with fail_together(mesh):
        for (split, first), values in zip(mine, found, strict=True):
            _check_finite(values, first, pairs, reference)
            if mesh["tensor"].rank == 0:
                with write_atomic(_chunk(workplace, split, first)) as file:
                    file.write(values.astype(DTYPE).tobytes())


def _chunk(workplace: Path, split: str, first: int) -> Path:
    return workplace / f"{split}-{first:09d}.f32"


def _missing_chunks(pairs: Pairs, workplace: Path) -> list[tuple[str, int]]:
    """The split and the first pair of each chunk that no earlier command has left."""
    workplace.mkdir(parents=True, exist_ok=True)
    chunks = [(s, first) for s, rows in pairs.splits.items() for first in range(0, rows.documents, CHUNK)]
    return [(s, first) for s, first in chunks if not may_exist(_chunk(workplace, s, first))]


def log_probabilities(
    rows: TokenDataset,
    index: np.ndarray,
    data: PreparedData,
    reference: Reference,
    device: torch.device,
    done: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """(pairs, 2) float32: the log-probability of each answer given its prompt. index: numbers of pairs. done:
    called after each pass with its number of them."""
    boundary = data.tokenizer.end_of_text_id if data.document_masks else None
    found = []
    for start in range(0, len(index), reference.batch_pairs):
        some = index[start : start + reference.batch_pairs]
        targets = rows.targets(some, data.sequence_length)
        assert targets is not None, "pairs have tokens that are no targets"
        tokens = torch.from_numpy(rows.rows(some, data.sequence_length).astype(np.int32))
        batch = Rows.of(split_pairs(tokens), split_pairs(torch.from_numpy(targets), 0), boundary)
        with torch.inference_mode():
            nats = reference.model(batch.pinned_for(device).to(device)).nats
        found.append(-nats.view(-1, 2).cpu().numpy())
        done(len(some))
    return np.concatenate(found)


def _check_finite(values: np.ndarray, first: int, pairs: Pairs, reference: Reference) -> None:
    if not np.isfinite(values).all():
        number = first + int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise RunFault(
            f"{reference.weights.path}: the reference gives pair {number} of source {pairs.name} a "
            "log-probability that is not finite; try train.precision=fp32, or another reference"
        )


def _assemble(pairs: Pairs, workplace: Path, reference: Reference) -> str:
    """Puts the chunks of a source together, and gives the folder its name."""
    arrays = {}
    for split, rows in pairs.splits.items():
        paths = [_chunk(workplace, split, first) for first in range(0, rows.documents, CHUNK)]
        values = np.frombuffer(b"".join(path.read_bytes() for path in paths), dtype=DTYPE).reshape(-1, 2)
        if len(values) != rows.documents:
            raise RunFault(f"{workplace}: holds {len(values)} pairs of {rows.documents}; delete it")
        arrays[split] = values
    record = ReferenceRecord(
        model=str(reference.weights.path.absolute()),
        digest=reference.digest,
        precision=reference.precision,
        splits={},
    )
    whole = workplace / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    write(whole, arrays, record)
    if not pairs.folder.exists():  # where it does, another command was first
        os.rename(whole, pairs.folder)
        sync_folder(pairs.folder.parent)
    shutil.rmtree(workplace, ignore_errors=True)
    return ""
