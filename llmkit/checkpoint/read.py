"""Finding the newest good checkpoint, and reading any region of any tensor from it.

Every byte is checked against its block's checksum before it is used, and only the blocks that hold
something of what is asked for are read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.files import BlockFile, OpenFiles, TensorPlace, decode_header, open_file
from llmkit.checkpoint.pieces import ContiguousBox, check_piece, intersect, runs, subtract
from llmkit.errors import UserError
from llmkit.files import cannot_read
from llmkit.parallel.slices import Box, Range, Shape, box_shape, box_size, full_box

_CACHED_BLOCKS = 8
"""Small tensors share blocks, and the kinds of one tensor are asked for in turn."""

Damaged = fmt.Damaged


def newest(root: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint in the folder `root` that is whole and good; None if there is none.

    Reads all of it. Each newer one that is not good is told to `report` in one line.
    """
    for folder in reversed(folders(root)):
        try:
            checkpoint = load(folder)
            for line in checkpoint.problems():
                raise Damaged(line)
            return checkpoint
        except Damaged as error:
            report(f"checkpoint {folder.name} is not usable: {error}")
    return None


def open(path: Path, report: Callable[[str], None] | None = None) -> Checkpoint:
    """The checkpoint a user means by a path: a run folder, a folder of checkpoints, or a checkpoint.

    In the first two the newest good one is taken, as by `newest`; `report` is by default a line on
    standard error. Raises UserError if there is none, Damaged if the checkpoint named is not good.
    """
    try:
        return _open(path, report or _to_stderr)
    except PermissionError as error:
        raise cannot_read(Path(error.filename), error) from error


def _open(path: Path, report: Callable[[str], None]) -> Checkpoint:
    if not path.is_dir():
        what = "is no folder" if os.path.lexists(path) else "no such folder"
        raise UserError(f"{path}: {what}; name a run folder, its checkpoints folder or a checkpoint")
    root = path / "checkpoints"
    link = f" (a link to {os.readlink(root)})" if root.is_symlink() else ""
    if link and not root.exists():
        raise UserError(f"{root}{link} is not there; is its disk mounted?")
    if not root.is_dir():
        if os.path.lexists(path / fmt.MANIFEST):
            return load(path)
        root = path
    found = newest(root, report)
    if found is None:
        count = len(folders(root))
        why = (
            f"none of the {count} checkpoints in it is good"
            if count
            else f"there is no checkpoint in it{_runs(path)}"
        )
        raise UserError(f"{root}{link}: {why}")
    return found


def _runs(path: Path) -> str:
    """The run folders in a folder that was named in the place of one, as `runs` in that of `runs/demo`."""
    runs = sorted(folder.parent for folder in path.glob("*/checkpoints") if folders(folder))
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"; name one of its run folders: {', '.join(map(str, runs[:3]))}{more}" if runs else ""


def folders(root: Path) -> list[Path]:
    """The folders in `root` that should be checkpoints, good or not, the oldest step first.

    Links to folders count, also to one that is not there. One that is being replaced by another of the same
    step counts as long as that is not there. Raises UserError where this user may not look.
    """
    try:
        names = {path.name for path in root.iterdir() if path.is_dir() or path.is_symlink()}
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise cannot_read(root, error) from error
    found = {name: name for name in names if fmt.FOLDER.fullmatch(name)}
    for name in names:
        final = name.removeprefix(fmt.REPLACED)
        if fmt.FOLDER.fullmatch(final):
            found.setdefault(final, name)
    return [root / found[final] for final in sorted(found)]


def verify(folder: Path, share: int = 0, of: int = 1) -> list[str]:
    """Read all of a checkpoint folder; one line for each thing that is wrong.

    share, of: processes that check one checkpoint together read a share of the files each.
    """
    try:
        return list(load(folder).problems(share, of))
    except (Damaged, UserError) as error:
        return [str(error)]


def describe(root: Path) -> Iterator[str]:
    """A line for each checkpoint in the folder `root`, the oldest first; files are not read in full."""
    for folder in folders(root):
        try:
            checkpoint = load(folder)
        except (Damaged, UserError) as error:
            yield f"{folder.name}  not usable: {error}"
            continue
        size = sum(entry.size for entry in checkpoint.manifest.files)
        tensors = sum(len(checkpoint.names(kind)) for kind in checkpoint.kinds())
        yield f"{folder.name}  {size / 2**20:.1f} MiB  {tensors} tensors: {', '.join(checkpoint.kinds())}"


def load(folder: Path) -> Checkpoint:
    """The checkpoint in exactly this folder. Checks the manifest and the sizes of all files.

    What is in a file is checked when it is asked for. The folder may be a link, its files may not.

    Raises Damaged, and UserError for a checkpoint in the format of another version.
    """
    if folder.is_symlink() and not folder.exists():
        raise Damaged(f"{folder}: it is a link to {os.readlink(folder)}, which is not there")
    manifest = _read_manifest(folder / fmt.MANIFEST)
    named = fmt.FOLDER.fullmatch(folder.name.removeprefix(fmt.REPLACED))
    if named and int(named[1]) != manifest.step:
        raise Damaged(f"{folder / fmt.MANIFEST}: it is of step {manifest.step}")
    return Checkpoint(folder, manifest)


def _read_manifest(path: Path) -> fmt.Manifest:
    with os.fdopen(open_file(path), "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > fmt.MAX_MANIFEST:
                raise ValueError(f"it has {size} bytes, more than any manifest")
            return fmt.Manifest.decode(file.read())
        except fmt.OtherFormatError as error:
            raise UserError(f"{path}: {error}; use that version, or move the checkpoint away") from error
        except (OSError, ValueError) as error:
            raise Damaged(f"{path}: {error}") from error


class Checkpoint:
    """A checkpoint that is open for reading; made by `newest`, `open` or `load`.

    It stays readable when its folder is deleted meanwhile, unless it has more than `files.OPEN_FILES` files.
    """

    def __init__(self, path: Path, manifest: fmt.Manifest) -> None:
        self.path = path
        self.manifest = manifest
        opened = OpenFiles()
        self._files = {entry.name: BlockFile(path / entry.name, entry, opened) for entry in manifest.files}
        self._blocks: dict[tuple[str, int], Tensor] = {}
        self._places: dict[str, dict[str, TensorPlace]] = {}
        self._pieces: dict[tuple[str, str], list[fmt.PieceEntry]] = {}
        for entry in manifest.pieces:
            self._pieces.setdefault((entry.kind, entry.name), []).append(entry)

    @property
    def step(self) -> int:
        """How many steps had been taken."""
        return self.manifest.step

    @property
    def origin(self) -> str:
        """Its folder and the version that wrote it, for messages."""
        return f"{self.path} (written by llmkit {self.manifest.versions.get('llmkit', 'of unknown version')})"

    @property
    def state(self) -> dict[str, Any]:
        """The state of the run, as it was given to `save`."""
        return self.manifest.state

    @property
    def model(self) -> dict[str, Any]:
        """The shape of the model, as it was given to `save`."""
        return self.manifest.model

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config, as it was given to `save`."""
        return self.manifest.config

    def kinds(self) -> list[str]:
        """What is stored of the tensors: "master", "exp_avg", ..."""
        return list(dict.fromkeys(kind for kind, _ in self._pieces))

    def names(self, kind: str) -> list[str]:
        """The full tensors of which something of this kind is stored."""
        return [name for stored, name in self._pieces if stored == kind]

    def shape(self, name: str, kind: str) -> Shape:
        """The shape of a full tensor."""
        return self._stored(name, kind)[0].shape

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """A region of a full tensor, put together from whatever pieces hold it.

        box: which part of the full tensor; all of it by default.
        range: which elements of the box, counted row by row; then the result has one dimension.

        Returns a new tensor on the CPU, shaped like the box if there is no range, of the type stored.
        Raises Damaged if bytes it needs are not what was written or nothing holds some of the region,
        ValueError if the region does not lie in the tensor.
        """
        stored = self._stored(name, kind)
        shape, dtype = stored[0].shape, fmt.DTYPES[stored[0].dtype]
        box = full_box(shape) if box is None else box
        lo, hi = (0, box_size(box)) if range is None else range
        check_piece(shape, box, (lo, hi))
        targets = list(runs(box, (lo, hi)))
        self._require(name, kind, stored, targets)
        out = torch.empty(hi - lo, dtype=dtype)
        for piece in stored:
            if any(intersect(piece.box, target.box) for target in targets):
                self._copy(piece, targets, out, lo)
        return out.view(box_shape(box)) if range is None else out

    def extra_file(self, name: str) -> bytes:
        """The content of a file given to `save` beside the pieces. Raises KeyError, Damaged."""
        entry = self._files[name].entry
        return self._bytes(name, 0, entry.size)

    def tokenizer_json(self) -> str:
        """The tokenizer the model was trained with. Raises UserError if none was stored, Damaged."""
        if fmt.TOKENIZER not in self._files:
            raise UserError(f"{self.path}: there is no {fmt.TOKENIZER} in this checkpoint")
        return self.extra_file(fmt.TOKENIZER).decode()

    def problems(self, share: int = 0, of: int = 1) -> Iterator[str]:
        """Read everything; a line for each file that is not what was written. See `verify`."""
        inside: dict[str, list[fmt.PieceEntry]] = {}
        for entry in self.manifest.pieces:
            inside.setdefault(entry.file, []).append(entry)
        for name, file in list(self._files.items())[share::of]:
            try:
                file.check()
                for entry in inside.get(name, []):
                    self._place(entry)
            except Damaged as error:
                yield str(error)

    def _stored(self, name: str, kind: str) -> list[fmt.PieceEntry]:
        try:
            return self._pieces[kind, name]
        except KeyError:
            raise Damaged(f"{self.path}: there is no {kind} of {name} in this checkpoint") from None

    def _require(
        self, name: str, kind: str, stored: list[fmt.PieceEntry], targets: list[ContiguousBox]
    ) -> None:
        """Raise Damaged unless the pieces hold all of the targets."""
        missing = [target.box for target in targets]
        for piece in stored:
            if any(intersect(piece.box, box) for box in missing):
                for run in runs(piece.box, piece.range):
                    missing = [rest for box in missing for rest in subtract(box, run.box)]
        if missing:
            place = ", ".join(f"{lo}:{hi}" for lo, hi in missing[0])
            raise Damaged(f"{self.path}: no piece holds [{place}] of {kind} {name}")

    def _copy(self, piece: fmt.PieceEntry, targets: list[ContiguousBox], out: Tensor, first: int) -> None:
        """Copy what a piece holds of the targets to its place in `out`, block by block.

        out: (n,) elements of the box asked for, of which `out[0]` is number `first`.
        """
        itemsize, lo = out.itemsize, piece.range[0]
        place = self._place(piece)
        for index in range(place.start // fmt.BLOCK, -(-place.stop // fmt.BLOCK)):
            begin = max(place.start, index * fmt.BLOCK)
            end = min(place.stop, (index + 1) * fmt.BLOCK)
            start = lo + (begin - place.start) // itemsize
            sources = list(runs(piece.box, (start, start + (end - begin) // itemsize)))
            pairs = [(s, t, both) for s in sources for t in targets if (both := intersect(s.box, t.box))]
            if pairs:
                inside = slice(begin - index * fmt.BLOCK, end - index * fmt.BLOCK)
                data = self._block(piece.file, index)[inside].view(out.dtype)
                for source, target, both in pairs:
                    target.view(out, first, both).copy_(source.view(data, start, both))

    def _block(self, name: str, index: int) -> Tensor:
        """A verified block of a file, as bytes."""
        block = self._blocks.get((name, index))
        if block is None:
            block = self._files[name].block(index)
            if len(self._blocks) >= _CACHED_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[name, index] = block
        return block

    def _bytes(self, name: str, lo: int, hi: int) -> bytes:
        """Verified bytes [lo, hi) of a file."""
        indices = range(lo // fmt.BLOCK, -(-hi // fmt.BLOCK))
        start = lo - indices.start * fmt.BLOCK
        found = b"".join(self._block(name, index).numpy().tobytes() for index in indices)
        return found[start : start + hi - lo]

    def _place(self, entry: fmt.PieceEntry) -> TensorPlace:
        """Where in its file a piece's bytes are. Raises Damaged if it is not there."""
        if entry.file not in self._places:
            self._places[entry.file] = decode_header(
                self._files[entry.file], partial(self._bytes, entry.file)
            )
        place = self._places[entry.file].get(entry.key)
        size = (entry.range[1] - entry.range[0]) * fmt.DTYPES[entry.dtype].itemsize
        if place is None or place.dtype != entry.dtype or place.stop - place.start != size:
            path = self._files[entry.file].path
            raise Damaged(f"{path}: {entry.key} is not the tensor that the manifest lists")
        return place


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
