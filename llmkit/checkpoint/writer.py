"""The files of one process in a checkpoint that is being written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.files import TensorPlace, encode_header, tensor_bytes, write_file
from llmkit.checkpoint.pieces import Piece
from llmkit.parallel.slices import box_shape, box_size

FILE_BYTES = 2**30
"""Pieces go into a next file when a file has this many bytes. Bounds how many pieces that are made one
after the other have to be in memory at once, since a safetensors file starts with their sizes."""


class Writer:
    """Writes files into a folder, each at once and for good, and notes what the manifest must list.

    rank: of the process, part of the names of its files.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.rank = rank
        self.written = 0
        self.files: list[fmt.FileEntry] = []
        self.pieces: list[fmt.PieceEntry] = []

    def write_pieces(self, pieces: Iterable[Piece]) -> None:
        """All pieces, in files of `FILE_BYTES` and a little more, the last of what is left."""
        batch: list[Piece] = []
        number, size = 0, 0
        for piece in pieces:
            batch.append(piece)
            size += piece.data.nbytes
            if size >= FILE_BYTES:
                self._write_batch(number, batch)
                batch.clear()
                number, size = number + 1, 0
        if batch:
            self._write_batch(number, batch)

    def write_bytes(self, name: str, content: bytes) -> None:
        """A file as it is."""
        self._write(name, [memoryview(content)])

    def discard(self) -> None:
        """Deletes what it has written of the pieces, as far as that is possible."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"pieces-{self.rank:05d}-*"):
                path.unlink()

    def notes(self) -> str:
        """What the manifest must list, as text for another process's `add`."""
        files, pieces = (
            [entry.model_dump(mode="json") for entry in each] for each in (self.files, self.pieces)
        )
        return json.dumps({"files": files, "pieces": pieces})

    def add(self, notes: str) -> None:
        """Counts in what another process has written."""
        content = json.loads(notes)
        self.files += [fmt.FileEntry.model_validate_json(json.dumps(entry)) for entry in content["files"]]
        self.pieces += [fmt.PieceEntry.model_validate_json(json.dumps(entry)) for entry in content["pieces"]]

    def _write_batch(self, number: int, pieces: Sequence[Piece]) -> None:
        """One safetensors file; its name tells the rank that wrote it and its number."""
        name = f"pieces-{self.rank:05d}-{number:05d}.safetensors"
        pieces = sorted(pieces, key=lambda piece: -piece.data.itemsize)  # keeps each aligned, without holes
        places: dict[str, TensorPlace] = {}
        offset = 0
        for piece in pieces:
            entry = _entry(piece, name)
            if entry.key in places:
                raise ValueError(f"{entry.key} is given twice")
            shape = (
                box_shape(piece.box) if piece.data.numel() == box_size(piece.box) else (piece.data.numel(),)
            )
            places[entry.key] = TensorPlace(entry.dtype, shape, offset, offset := offset + piece.data.nbytes)
            self.pieces.append(entry)
        self._write(name, _safetensors(encode_header(places), pieces))

    def _write(self, name: str, chunks: Iterable[memoryview]) -> None:
        entry = write_file(self.folder / name, chunks)
        self.written += entry.size
        self.files.append(entry)


def _safetensors(header: bytes, pieces: Sequence[Piece]) -> Iterator[memoryview]:
    yield memoryview(header)
    for piece in pieces:
        flat = piece.data.detach().cpu().contiguous()
        yield tensor_bytes(flat.as_strided(flat.shape, (1,)))  # one element may keep any stride


def _entry(piece: Piece, file: str) -> fmt.PieceEntry:
    """The manifest's line for a piece."""
    if piece.data.dtype not in fmt.DTYPE_NAMES:
        raise ValueError(f"{piece.kind} {piece.name}: elements of type {piece.data.dtype} cannot be stored")
    key = f"{piece.kind}/{piece.name}"
    if piece.data.numel() != prod(piece.shape):
        place = ",".join(f"{lo}:{hi}" for lo, hi in (*piece.box, piece.range))
        key = f"{key}/{place}"
    return fmt.PieceEntry(
        name=piece.name,
        kind=piece.kind,
        shape=tuple(piece.shape),
        box=piece.box,
        range=piece.range,
        dtype=fmt.DTYPE_NAMES[piece.data.dtype],  # type: ignore[arg-type]  # its values are the literals
        file=file,
        key=key,
    )
