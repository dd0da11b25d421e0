"""A checkpoint as it is offered to be copied."""

from __future__ import annotations

from pathlib import Path

from llmkit.checkpoint.format import MANIFEST
from llmkit.checkpoint.keeping import read_best
from llmkit.checkpoint.read import load
from llmkit.config.schema import Config
from llmkit.copies.offer import Offer, Rule
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


def offer_of(checkpoint: Path, config: Config) -> Offer:
    """A checkpoint of a run that is to be copied. config: the run's. Raises as `files_of` does."""
    best = read_best(checkpoint.parent)
    keep = config.checkpoint
    return Offer(
        name=checkpoint.name, files=files_of(checkpoint),
        rule=Rule(
            keep_last=keep.keep_last, keep_every=keep.keep_every, best=None if best is None else best.step
        ),
    )  # fmt: skip
