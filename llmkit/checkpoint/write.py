"""Saving a checkpoint so that it is whole, or not there.

A checkpoint is built in a folder aside: files first, each synced to the disk, the manifest last. Only
then is the folder renamed to its final name. Names of folders that are not (or no longer) checkpoints:

    .tmp-step-00000100       being written
    .tmp-old-step-00000100   being deleted
    .replaced-step-00000100  whole, and valid until `step-00000100` is there again
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from llmkit import __version__
from llmkit.checkpoint import format as fmt
from llmkit.checkpoint import read
from llmkit.checkpoint.files import TensorPlace, encode_header, tensor_bytes, write_file
from llmkit.checkpoint.pieces import Piece
from llmkit.errors import RunFault
from llmkit.files import sync_folder
from llmkit.parallel.spec import sizes, volume

FILE_BYTES = 2**30
"""Pieces go into a next file when a file has this many bytes. Bounds how many pieces that are made one
after the other have to be in memory at once, since a safetensors file starts with their sizes."""
_LEFTOVER = re.compile(r"\.tmp-(old-)?" + fmt.FOLDER.pattern)
_REPLACED = re.compile(re.escape(fmt.REPLACED) + f"({fmt.FOLDER.pattern})")


def save(
    root: Path,
    step: int,
    pieces: Iterable[Piece],
    *,
    state: dict[str, Any],
    model: dict[str, Any],
    config: dict[str, Any],
    extra_files: dict[str, bytes],
    keep_last: int,
) -> Path:
    """Write the checkpoint of a step into the folder `root`, then delete all but the newest.

    pieces: all of them, once; tensors may lie on any device. Up to `FILE_BYTES` of them are kept alive
        at a time, which matters only if they are made as they are asked for.
    state: step, tokens, position in the data, ...; model, config: what the run was built from. JSON.
    extra_files: name -> content, such as tokenizer.json.
    keep_last: how many checkpoints to keep, this one included. Those of later steps (left by a run that
        went back) do not count and are not deleted.

    Returns the folder. A whole checkpoint of the same step is replaced only by a whole one.

    Raises RunFault if the disk fails or is full; what was written of this checkpoint is then removed,
    and no other is touched.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, but at least one checkpoint must be kept")
    final = root / fmt.folder_name(step)
    fmt.canonical({"state": state, "model": model, "config": config})  # fails before anything is written
    if wrong := [name for name in extra_files if name == fmt.MANIFEST or not fmt.FILE_NAME.fullmatch(name)]:
        raise ValueError(f"{wrong[0]!r} cannot be the name of a file in a checkpoint")
    temporary = root / f".tmp-{final.name}"
    writer = _Writer(temporary)
    try:
        root.mkdir(parents=True, exist_ok=True)
        tidy(root)
        temporary.mkdir()
        writer.write_pieces(pieces)
        for name, content in extra_files.items():
            writer.write_bytes(name, content)
        writer.write_manifest(step=step, state=state, model=model, config=config, extra_files=extra_files)
        sync_folder(temporary)
        read.load(temporary)
        _commit(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunFault(_explain(error, final, pieces, writer.written)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(root, final, keep_last)
    return final


def tidy(root: Path) -> None:
    """Clear away what an interrupted save left in `root`. Only for the one process that saves there.

    Raises OSError.
    """
    for path in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:  # .tmp-old- before .replaced-
        if replaced := _REPLACED.fullmatch(path.name):
            if os.path.lexists(root / replaced[1]):
                _delete(path)
            else:
                path.rename(root / replaced[1])
        elif _LEFTOVER.fullmatch(path.name):
            _remove(path)


class _Writer:
    """Writes files into a folder, each at once and for good, and notes what the manifest must list."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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

    def _write_batch(self, number: int, pieces: Sequence[Piece]) -> None:
        """One safetensors file; its name tells the rank that wrote it and its number."""
        name = f"pieces-00000-{number:05d}.safetensors"
        pieces = sorted(pieces, key=lambda piece: -piece.data.itemsize)  # keeps each aligned, without holes
        places: dict[str, TensorPlace] = {}
        offset = 0
        for piece in pieces:
            entry = _entry(piece, name)
            if entry.key in places:
                raise ValueError(f"{entry.key} is given twice")
            shape = sizes(piece.box) if piece.data.numel() == volume(piece.box) else (piece.data.numel(),)
            places[entry.key] = TensorPlace(entry.dtype, shape, offset, offset := offset + piece.data.nbytes)
            self.pieces.append(entry)
        self._write(name, _safetensors(encode_header(places), pieces))

    def write_bytes(self, name: str, content: bytes) -> None:
        """A file as it is."""
        self._write(name, [memoryview(content)])

    def write_manifest(
        self,
        *,
        step: int,
        state: dict[str, Any],
        model: dict[str, Any],
        config: dict[str, Any],
        extra_files: dict[str, bytes],
    ) -> None:
        """`manifest.json`, which lists all that was written before."""
        tokenizer = extra_files.get(fmt.TOKENIZER)
        manifest = fmt.Manifest(
            format="llmkit-checkpoint",
            version=1,
            block=4194304,
            step=step,
            versions={"llmkit": __version__, "torch": str(torch.__version__)},
            tokenizer_sha256=None if tokenizer is None else hashlib.sha256(tokenizer).hexdigest(),
            model=model,
            config=config,
            state=state,
            files=list(self.files),
            pieces=self.pieces,
        )
        self.write_bytes(fmt.MANIFEST, manifest.encode())

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


def _commit(temporary: Path, final: Path) -> None:
    """Give a finished folder its name; at every moment the old or the new one can be found."""
    if not os.path.lexists(final):
        temporary.rename(final)
    else:
        replaced = final.with_name(fmt.REPLACED + final.name)
        final.rename(replaced)
        try:
            temporary.rename(final)
        except OSError:
            replaced.rename(final)
            raise
    sync_folder(final.parent)


def _prune(root: Path, newest: Path, keep_last: int) -> None:
    """Delete all but `keep_last` of the checkpoints up to `newest`, once that one is known to be good."""
    try:
        older = sorted(p for p in root.iterdir() if fmt.FOLDER.fullmatch(p.name) and p.name < newest.name)
        replaced = newest.with_name(fmt.REPLACED + newest.name)
        doomed = older[: max(0, len(older) - (keep_last - 1))] + [replaced] * os.path.lexists(replaced)
        if not doomed:
            return
        if problems := read.verify(newest):
            raise RunFault(f"the checkpoint just written is bad, older ones are kept: {problems[0]}")
        for path in doomed:
            _delete(path)
    except OSError as error:
        raise RunFault(f"{newest} is saved, but older ones cannot be deleted: {error}") from error


def _delete(path: Path) -> None:
    """Take a checkpoint out of sight at once, then delete it: half of one is never seen."""
    aside = path.with_name(f".tmp-old-{path.name.removeprefix(fmt.REPLACED)}")
    path.rename(aside)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _explain(error: OSError, final: Path, pieces: Iterable[Piece], written: int) -> str:
    """Why a save failed, with the bytes it needs and the bytes that are free."""
    if isinstance(pieces, Sequence):
        needed = f"needs {sum(piece.data.nbytes for piece in pieces)} bytes"
    else:
        needed = f"needs more than {written} bytes"
    try:
        free = f"{shutil.disk_usage(final.parent).free} are free"
    except OSError:
        free = "the folder cannot be reached"
    return f"cannot save checkpoint {final}: {error.strerror or error} (it {needed}, {free})"
