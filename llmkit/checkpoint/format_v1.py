"""Version 1 of the format, written until 2026-11-29: a manifest that lists every piece as a JSON object."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from llmkit.checkpoint import index
from llmkit.checkpoint.files import StoredFile
from llmkit.checkpoint.format import Contents, Count, DtypeName, FileName, Kind, TensorName, _Entry
from llmkit.checkpoint.pieces import check_piece


class PieceEntryV1(_Entry):
    """A piece (see `pieces.Piece`), and the tensor `key` of the safetensors file that holds it."""

    name: TensorName
    kind: Kind
    shape: tuple[Count, ...]
    box: tuple[tuple[Count, Count], ...]
    range: tuple[Count, Count]
    dtype: DtypeName
    file: FileName
    key: str

    @model_validator(mode="after")
    def _inside(self) -> PieceEntryV1:
        check_piece(self.shape, self.box, self.range)
        return self


class ManifestV1(Contents):
    """The content of `manifest.json`. `files` are all files."""

    version: Literal[1]
    pieces: list[PieceEntryV1]

    def to_index(self) -> index.Index:
        """The index that version 2 keeps in a file. Raises ValueError if the pieces contradict each other."""
        files = {entry.name: number for number, entry in enumerate(self.files)}
        entries = []
        for piece in self.pieces:
            if piece.file not in files:
                raise ValueError(f"{piece.name} is in {piece.file}, which is not listed")
            tensor = index.TensorEntry(piece.kind, piece.name, piece.shape, piece.dtype)
            entry = index.PieceEntry(tensor, piece.box, piece.range, files[piece.file])
            if piece.key != entry.key:
                raise ValueError(f"{piece.key} cannot be the key of {entry.key}")
            entries.append(entry)
        return index.build_index(entries, [StoredFile.of(entry) for entry in self.files])
