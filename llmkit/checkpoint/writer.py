"""The files of one process in a checkpoint that is being written."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.files import StoredFile, tensor_bytes, write_file
from llmkit.checkpoint.index import Index, PieceEntry, TensorEntry, build_index
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.safetensors_header import TensorSpan, encode_header
from llmkit.config.memory import show_bytes
from llmkit.errors import RunFault
from llmkit.parallel.slices import box_shape, box_size

FILE_BYTES = 2**30
"""Pieces go into a next file when a file has this many bytes. Bounds how many pieces that are made one
after the other have to be in memory at once, since a safetensors file starts with their sizes."""

ASIDE = ".tmp-"
"""Before the name of a folder that is being written, such as a checkpoint."""


class Writer:
    """Writes files of one process into a folder beside `final`, and notes what the index must list.

    final: the folder of the checkpoint to be. folder: where its files are until then. rank: of the process,
    part of the names of its files. generation: of the start of the run, part of the folder's name, so that no
    other start writes into it; 0 outside of a run.
    """

    def __init__(self, final: Path, rank: int = 0, generation: int = 0) -> None:
        self.final = final
        start = f"{generation}-" if generation else ""
        self.folder = final.with_name(f"{ASIDE}{start}{final.name}")
        self.rank = rank
        self.written = 0
        self._files: list[StoredFile] = []
        self._entries: list[PieceEntry] = []

    def write_pieces(self, pieces: Iterable[Piece]) -> None:
        """Writes the pieces into files of about `FILE_BYTES` each."""
        batch: list[Piece] = []
        size = 0
        for piece in pieces:
            batch.append(piece)
            size += piece.data.nbytes
            if size >= FILE_BYTES:
                self._write_batch(batch)
                batch.clear()
                size = 0
        if batch:
            self._write_batch(batch)

    def write_bytes(self, name: str, content: bytes) -> StoredFile:
        """A file as it is."""
        return self._write(name, [memoryview(content)])

    def index(self) -> Index:
        """The index of the pieces written so far."""
        return build_index(self._entries, self._files)

    @contextlib.contextmanager
    def explained(self, pieces: Iterable[Piece]) -> Iterator[None]:
        """Turns an OSError into a RunFault that says what could not be saved and how much room it needs.

        pieces: all of this rank. What it has written of them is deleted.
        """
        try:
            yield
        except OSError as error:
            self.discard()
            raise RunFault(self._explanation(error, pieces)) from error

    def _explanation(self, error: OSError, pieces: Iterable[Piece]) -> str:
        if isinstance(pieces, Sequence):
            needed = f"it needs {show_bytes(sum(piece.data.nbytes for piece in pieces))}, "
        else:
            written = show_bytes(self.written)
            needed = f"it needs more than the {written} that could be written, " if self.written else ""
        try:
            free = f"{show_bytes(shutil.disk_usage(self.final.parent).free)} are free"
        except OSError:
            free = "the folder cannot be reached"
        return f"cannot save checkpoint {self.final}: {error.strerror or error} ({needed}{free})"

    def discard(self) -> None:
        """Deletes what it has written of the pieces, as far as that is possible."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"pieces-{self.rank:05d}-*"):
                path.unlink()

    def _write_batch(self, pieces: Sequence[Piece]) -> None:
        """One safetensors file; its name tells the rank that wrote it and its number."""
        number = len(self._files)
        pieces = sorted(pieces, key=lambda piece: -piece.data.itemsize)  # keeps each aligned, without holes
        spans: dict[str, TensorSpan] = {}
        offset = 0
        for piece in pieces:
            entry = _entry(piece, number)
            if entry.key in spans:
                raise ValueError(f"{entry.key} is given twice")
            shape = (
                box_shape(piece.box) if piece.data.numel() == box_size(piece.box) else (piece.data.numel(),)
            )
            stop = offset + piece.data.nbytes
            spans[entry.key] = TensorSpan(entry.tensor.dtype, shape, offset, stop)
            self._entries.append(entry)
            offset = stop
        name = f"pieces-{self.rank:05d}-{number:05d}.safetensors"
        self._files.append(self._write(name, _safetensors(encode_header(spans), pieces)))

    def _write(self, name: str, chunks: Iterable[memoryview]) -> StoredFile:
        stored = write_file(self.folder / name, chunks)
        self.written += stored.size
        return stored


def _safetensors(header: bytes, pieces: Sequence[Piece]) -> Iterator[memoryview]:
    yield memoryview(header)
    for piece in pieces:
        flat = piece.data.detach().cpu().contiguous()
        yield tensor_bytes(flat.as_strided(flat.shape, (1,)))  # one element may keep any stride


def _entry(piece: Piece, file: int) -> PieceEntry:
    """The entry of a piece in the index."""
    if piece.data.dtype not in fmt.DTYPE_NAMES:
        raise ValueError(f"{piece.kind} {piece.name}: elements of type {piece.data.dtype} cannot be stored")
    dtype = fmt.DTYPE_NAMES[piece.data.dtype]
    tensor = TensorEntry(piece.kind, piece.name, tuple(piece.shape), dtype)
    return PieceEntry(tensor, piece.box, piece.range, file)
