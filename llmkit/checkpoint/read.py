"""Finding the newest good checkpoint, and reading from it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from llmkit import __version__
from llmkit.checkpoint import format as fmt
from llmkit.checkpoint import index_file
from llmkit.checkpoint.files import OPEN_FILES, BlockFile, OpenFiles, StoredFile, open_file, unreadable
from llmkit.checkpoint.foreign import foreign
from llmkit.checkpoint.format_v1 import ManifestV1
from llmkit.checkpoint.index import Index
from llmkit.checkpoint.pieces import check_piece
from llmkit.checkpoint.regions import RegionReader
from llmkit.errors import RunFault, UserError
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import Box, Range, Shape, box_shape, box_size, full_box

ALONE = Mesh()
Damaged = fmt.Damaged


def newest(
    root: Path, report: Callable[[str], None], mesh: Mesh = ALONE, below: int | None = None
) -> Checkpoint | None:
    """The newest valid checkpoint in the folder `root`; None if there is none. Collective.

    below: only those of earlier steps. The ranks verify a share of its bytes each, and each opens the one on
    which all agree. `report` gets one line for each newer checkpoint that is damaged.

    Raises UserError or RunFault on all ranks if one of them cannot read a checkpoint that may be valid.
    """
    listing = on_rank_zero(mesh, lambda: json.dumps([folder.name for folder in folders(root)]))
    for name in reversed(json.loads(listing)):
        if below is not None and name >= fmt.folder_name(below):
            continue
        try:
            return load_verified(root / name, mesh)
        except Damaged as error:
            report(f"checkpoint {name} is not usable: {error}")
    return None


def load_verified(folder: Path, mesh: Mesh = ALONE) -> Checkpoint:
    """The checkpoint in exactly this folder, of whose bytes each rank verifies a share. Collective.

    Raises Damaged on all ranks where one finds damage, UserError or RunFault where one cannot read it.
    """
    problem = ""
    with fail_together(mesh):
        try:
            checkpoint = load(folder)
            problem = next(checkpoint.problems(mesh.rank, mesh.world_size), "")
        except Damaged as error:
            problem = str(error)
    if problems := [found for found in mesh.all_gather_text(problem) if found]:
        raise Damaged(problems[0])
    return checkpoint


def open(path: Path, report: Callable[[str], None] | None = None) -> Checkpoint:
    """The checkpoint at a path: a run folder, a folder of checkpoints, or a checkpoint.

    Of the first two the newest valid one, as by `newest`; `report` prints to standard error by default.
    Raises UserError if there is none, Damaged if `path` is itself a damaged checkpoint.
    """
    try:
        return _open(path, report or _to_stderr)
    except OSError as error:
        raise unreadable(Path(error.filename or path), error) from error


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
            else foreign(root) or f"there is no checkpoint in it{_runs(path)}"
        )
        raise UserError(f"{root}{link}: {why}")
    return found


def _runs(path: Path) -> str:
    """What to name instead of a folder without checkpoints; its run folders, as of `runs` for `runs/demo`."""
    runs = sorted(folder.parent for folder in path.glob("*/checkpoints") if folders(folder))
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    if not runs:
        return "; name a run folder that has one, or a checkpoint"
    return f"; name one of its run folders: {', '.join(map(str, runs[:3]))}{more}"


def folders(root: Path) -> list[Path]:
    """The folders in `root` that are named as checkpoints, valid or not, the oldest step first.

    Includes links, dangling ones too, and one that is being replaced as long as its replacement is not there.
    Raises UserError where this user may not list the folder.
    """
    try:
        names = {path.name for path in root.iterdir() if path.is_dir() or path.is_symlink()}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(root, error) from error
    found = {name: name for name in names if fmt.FOLDER.fullmatch(name)}
    for name in names:
        final = name.removeprefix(fmt.REPLACED)
        if fmt.FOLDER.fullmatch(final):
            found.setdefault(final, name)
    return [root / found[final] for final in sorted(found)]


def verify(folder: Path, share: int = 0, of: int = 1) -> list[str]:
    """Read all of a checkpoint folder; one line for each problem.

    share, of: read only share number `share` of `of`, for processes that verify a checkpoint together.
    """
    try:
        return list(load(folder, OpenFiles()).problems(share, of))
    except (RunFault, UserError) as error:
        return [str(error)]


def load(folder: Path, opened: OpenFiles | None = None) -> Checkpoint:
    """The checkpoint in exactly this folder. Checks the manifest and the index.

    Other files are verified as they are read. The folder may be a link, its files may not.

    opened: keeps files open, of several checkpoints together; then none is opened before it is read. Without
    it all are opened now where they are few, which fails where one is missing.

    Raises Damaged, and UserError for a checkpoint in the format of another version.
    """
    if folder.is_symlink() and not folder.exists():
        raise Damaged(f"{folder}: it is a link to {os.readlink(folder)}, which is not there")
    path = folder / fmt.MANIFEST
    manifest = _read_manifest(path)
    named = fmt.FOLDER.fullmatch(folder.name.removeprefix(fmt.REPLACED))
    if named and int(named[1]) != manifest.step:
        raise Damaged(f"{path}: it is of step {manifest.step}")
    keep_open, opened = opened is None, opened or OpenFiles()
    if isinstance(manifest, ManifestV1):
        try:
            return Checkpoint(folder, manifest, manifest.to_index(), opened, keep_open)
        except ValueError as error:
            raise Damaged(f"{path}: {error}") from error
    file = BlockFile(folder / fmt.INDEX, StoredFile.of(manifest.index), opened)
    try:
        return Checkpoint(folder, manifest, index_file.decode(file.content()), opened, keep_open)
    except ValueError as error:
        raise Damaged(f"{file.path}: {error}") from error


def _read_manifest(path: Path) -> fmt.Manifest | ManifestV1:
    with os.fdopen(open_file(path), "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > fmt.MAX_MANIFEST:
                raise ValueError(f"it has {size} bytes, more than any manifest")
            content = fmt.decode_content(file.read())
            version = content.get("version", 1)
            if version not in (1, 2):
                versions = content.get("versions")
                by = versions.get("llmkit") if isinstance(versions, dict) else "of another version"
                raise UserError(
                    f"{path}: llmkit {by} wrote it in format version {version!r}, this llmkit {__version__} "
                    "reads versions 1 and 2; use that version, or move the checkpoint away"
                )
            kind = ManifestV1 if version == 1 else fmt.Manifest
            return kind.model_validate_json(fmt.canonical(content))
        except ValidationError as error:
            raise Damaged(f"{path}: {fmt.first_error(error)}") from None
        except ValueError as error:
            raise Damaged(f"{path}: {error}") from error
        except OSError as error:
            raise unreadable(path, error) from error


class Checkpoint:
    """A checkpoint that is open for reading; made by `newest`, `open` or `load`.

    It stays readable when its folder is deleted meanwhile, if its files are opened now (`keep_open`) and are
    at most `files.OPEN_FILES`; else they are opened as they are read, a few at a time.
    """

    def __init__(
        self, path: Path, manifest: fmt.Manifest | ManifestV1, index: Index, opened: OpenFiles,
        keep_open: bool,
    ) -> None:  # fmt: skip
        self.path = path
        self.manifest = manifest
        self._index = index
        listed = [StoredFile.of(entry) for entry in manifest.files]
        if isinstance(manifest, fmt.Manifest):
            listed += [StoredFile.of(manifest.index), *index.files]
        self.stored_files = listed
        """Its files as they were written, without the manifest."""
        self._files = {file.name: BlockFile(path / file.name, file, opened) for file in listed}
        if len(self._files) < len(listed) or fmt.MANIFEST in self._files:
            raise ValueError("it lists a file twice, or the manifest")
        self._regions = RegionReader(path, index, self._files)
        if keep_open and len(self._files) <= OPEN_FILES:
            for file in self._files.values():
                file.open()

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
        """The kinds of state that are stored: "master", "exp_avg", ..."""
        return list(dict.fromkeys(tensor.kind for tensor in self._index.tensors))

    def names(self, kind: str) -> list[str]:
        """The names of the full tensors with state of this kind."""
        return [tensor.name for tensor in self._index.tensors if tensor.kind == kind]

    def shape(self, name: str, kind: str) -> Shape:
        """The shape of a full tensor."""
        return self._index.tensors[self._number(name, kind)].shape

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """A region of a full tensor, put together from whatever pieces hold it.

        box: which part of the full tensor; all of it by default.
        range: which elements of the box, counted row by row; then the result has one dimension.

        Returns a new tensor on the CPU, shaped like the box if there is no range, of the type stored.
        Raises Damaged if bytes it needs are not what was written or nothing holds some of the region,
        ValueError if the region does not lie in the tensor.
        """
        number = self._number(name, kind)
        shape = self._index.tensors[number].shape
        box = full_box(shape) if box is None else box
        within = (0, box_size(box)) if range is None else range
        check_piece(shape, box, within)
        out = self._regions.read(number, box, within)
        return out.view(box_shape(box)) if range is None else out

    def read_into(self, out: Tensor, name: str, kind: str, box: Box, range: Range) -> None:
        """Sets `out`, (n,) of any type and device, to elements `range` of a box; as `read`.

        Where that raises Damaged, anything may be in `out`.
        """
        number = self._number(name, kind)
        if len(out) != range[1] - range[0]:
            raise ValueError(f"{name}: {len(out)} elements for the range {range}")
        if out.device.type == "cpu" and out.dtype == self._regions.dtype(number) and out.is_contiguous():
            check_piece(self._index.tensors[number].shape, box, range)
            self._regions.read(number, box, range, out)
        else:
            out.copy_(self.read(name, kind, box, range))

    def extra_file(self, name: str) -> bytes:
        """The content of a file given to `save` beside the pieces. Raises KeyError, Damaged."""
        return self._files[name].content()

    def tokenizer_json(self) -> str:
        """The tokenizer the model was trained with. Raises UserError if none was stored, Damaged."""
        if fmt.TOKENIZER not in self._files:
            raise UserError(f"{self.path}: there is no {fmt.TOKENIZER} in this checkpoint")
        return self.extra_file(fmt.TOKENIZER).decode()

    def check_sizes(self) -> None:
        """Raise Damaged unless all files are there, with the sizes that were written."""
        for file in self._files.values():
            file.check_size()

    def problems(self, share: int = 0, of: int = 1, sizes_only: bool = False) -> Iterator[str]:
        """Read everything; a line for each file that is missing or of another size, and each block that is
        not what was written. See `verify`. sizes_only: read nothing, but look at the files.
        """
        blocks = sum(file.blocks for file in self._files.values())
        first, end = blocks * share // of, blocks * (share + 1) // of
        with_pieces = {stored.name: number for number, stored in enumerate(self._index.files)}
        buffer = memoryview(bytearray(fmt.BLOCK))
        before = 0
        for number, (name, file) in enumerate(self._files.items()):
            mine = range(max(first - before, 0), min(end - before, file.blocks))
            before += file.blocks
            if not mine and number % of != share:
                continue
            try:
                file.check_size()
            except Damaged as error:
                if number % of == share:
                    yield str(error)
                continue
            found = [] if sizes_only else [text for block in mine if (text := file.damage(block, buffer))]
            yield from found
            if mine.start == 0 and mine and not sizes_only and not found and name in with_pieces:
                try:
                    self._regions.check_spans(with_pieces[name])
                except Damaged as error:
                    yield str(error)

    @property
    def nbytes(self) -> int:
        """The bytes of its files, without the manifest."""
        return sum(file.size for file in self._files.values())

    @property
    def writers(self) -> int:
        """How many ranks have written pieces."""
        names = (file.name for file in self._index.files)
        return len({name.split("-")[1] for name in names if name.startswith("pieces-")})

    def _number(self, name: str, kind: str) -> int:
        try:
            return self._index.numbers[kind, name]
        except KeyError:
            raise Damaged(f"{self.path}: there is no {kind} of {name} in this checkpoint") from None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
