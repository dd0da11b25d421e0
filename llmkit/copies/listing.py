"""A checkpoint as it is offered to be copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmkit.checkpoint.format import MANIFEST, Damaged, folder_name
from llmkit.checkpoint.keeping import read_best
from llmkit.checkpoint.read import load
from llmkit.config.schema import Config
from llmkit.copies.offer import Listed, Offer, Rule
from llmkit.copies.outgoing import Stored, stored
from llmkit.files import cannot_read, open_regular


def files_of(checkpoint: Path) -> list[Stored]:
    """All files of a checkpoint with the checksums in its index and manifest; the manifest is the last one.

    Raises Damaged where those cannot be read, UserError for a checkpoint of another version.
    """
    files = load(checkpoint).stored_files
    listed = [
        Stored(name=file.name, size=file.size, xxh64=[f"{value:016x}" for value in file.checksums])
        for file in files
    ]
    path = checkpoint / MANIFEST
    try:
        with open_regular(path) as opened:
            return [*listed, stored(MANIFEST, opened.read())]
    except OSError as error:
        raise cannot_read(path, error) from error


def offer_of(checkpoint: Path, config: Config, known: Mapping[str, Listed] | None = None) -> Offer:
    """A checkpoint of a run that is to be copied, and the best one with it. config: the run's.

    known: of what was listed before, by name; the best one need not be read again then. Raises as `files_of`
    does.
    """
    best, keep = read_best(checkpoint.parent), config.checkpoint
    return Offer(
        name=checkpoint.name, files=files_of(checkpoint),
        rule=Rule(
            keep_last=keep.keep_last, keep_every=keep.keep_every, best=None if best is None else best.step
        ),
        best=None if best is None else _other(checkpoint, folder_name(best.step), known or {}),
    )  # fmt: skip


def _other(checkpoint: Path, name: str, known: Mapping[str, Listed]) -> Listed | None:
    """The checkpoint of this name beside another one; None where it is that one, or no good one is there."""
    if name == checkpoint.name or not (checkpoint.parent / name).exists():
        return None
    try:
        return known.get(name) or Listed(name=name, files=files_of(checkpoint.parent / name))
    except Damaged:
        return None
