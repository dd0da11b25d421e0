"""What each process does in the tests of saving by many; see test_ranks.py."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import commit, read, write
from llmkit.checkpoint.pieces import Piece
from llmkit.errors import RunFault, UserError
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parallel.slices import Box, Range, box_shape, full_box

SHAPES = {"embedding": (7, 6), "norm": (5,)}
KINDS = ("master", "exp_avg")


def full(name: str, kind: str, step: int) -> torch.Tensor:
    """Values that tell where they belong."""
    count = torch.Size(SHAPES[name]).numel()
    return (torch.arange(float(count)) + 100 * KINDS.index(kind) + 1000 * step).view(SHAPES[name])


def piece(name: str, kind: str, step: int, box: Box, part: Range) -> Piece:
    region = full(name, kind, step)[tuple(slice(lo, hi) for lo, hi in box)]
    return Piece(name, kind, SHAPES[name], box, part, region.reshape(-1)[slice(*part)])


def cut(rank: int) -> list[tuple[str, Box, Range]]:
    """The embedding is cut into columns, the second half of which two ranks share; one has the norm."""
    left, right = ((0, 7), (0, 2)), ((0, 7), (2, 6))
    return [
        [("embedding", left, (0, 14))],
        [("embedding", right, (0, 9)), ("norm", full_box((5,)), (0, 5))],
        [("embedding", right, (9, 28))],
    ][rank]


def pieces(rank: int, step: int) -> list[Piece]:
    return [piece(name, kind, step, box, part) for kind in KINDS for name, box, part in cut(rank)]


def save(root: Path, step: int, mesh: Mesh, given: Any = None, keep_last: int = 1) -> Path:
    return write.save(
        root,
        step,
        pieces(mesh.rank, step) if given is None else given,
        state={"step": step, "rank": mesh.rank},
        model={},
        config={},
        extra_files={"tokenizer.json": b"{}"},
        keep_last=keep_last,
        mesh=mesh,
    )


def outcome(root: Path, mesh: Mesh, work: Callable[[], object]) -> dict[str, Any]:
    """How a save ended on this rank, and what lies on the disk when all have ended."""
    seen: dict[str, Any]
    try:
        seen = {"saved": str(work())}
    except (RunFault, UserError, ValueError) as error:
        seen = {"error": type(error).__name__, "message": str(error)}
    mesh.all_gather_text("all have ended")
    seen["names"] = sorted(path.name for path in root.iterdir())
    mesh.all_gather_text("all have looked")
    return seen


@contextmanager
def failing_disk(name: str) -> Iterator[None]:
    """No file whose name contains this can be written."""
    real = os.open

    def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT and name in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, flags, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        yield


def cases(root: str) -> dict[str, dict[str, Any]]:
    """Case -> how it ended here."""
    mesh, folder = make_mesh(1), Path(root)
    mine = pieces(mesh.rank, 9)

    def with_failing_disk(step: int, name: str) -> Path:
        with failing_disk(name):
            return save(folder, step, mesh)

    def breaking() -> Iterator[Piece]:
        yield mine[0]
        if mesh.rank == 2:
            raise ValueError("a bug")

    def turning_bad() -> Path:
        rename = commit._rename

        def spoiled(temporary: Path, final: Path) -> None:
            rename(temporary, final)
            path = final / "pieces-00002-00000.safetensors"
            path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commit, "_rename", spoiled)
            return save(folder, 9, mesh)

    works: dict[str, Callable[[], object]] = {
        "first": lambda: save(folder, 1, mesh),
        "full for one": lambda: with_failing_disk(9, "pieces-00001"),
        "full for all": lambda: with_failing_disk(9, "pieces-0000"),
        "full for the manifest": lambda: with_failing_disk(9, "manifest"),
        "full for the tokenizer": lambda: with_failing_disk(9, "tokenizer"),
        "not shared": lambda: save(folder / "elsewhere" if mesh.rank == 2 else folder, 9, mesh),
        "bug": lambda: save(folder, 9, mesh, breaking()),
        "missing slice": lambda: save(folder, 9, mesh, mine[:-1] if mesh.rank == 2 else mine),
        "missing box": lambda: save(folder, 9, mesh, [] if mesh.rank == 0 else mine),
        "given twice": lambda: save(folder, 9, mesh, pieces(max(mesh.rank, 1), 9)),
        "overlap": lambda: save(folder, 9, mesh, [*mine, *overlap(mesh.rank)]),
        "wrong setting": lambda: save(folder, 9, mesh, keep_last=0),
        "turning bad": turning_bad,
        "next": lambda: save(folder, 10, mesh, keep_last=1),
    }
    seen = {name: outcome(folder, mesh, work) for name, work in works.items()}
    seen["read"] = {"equal": _reads(read.load(folder / "step-00000010"), 10)}
    save(folder, 11, mesh, keep_last=5)
    seen["restart"] = outcome(folder, mesh, lambda: found_newest(folder, mesh))
    if mesh.rank == 0:
        path = folder / "step-00000011" / "pieces-00002-00000.safetensors"
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    mesh.all_gather_text("it is damaged")
    seen["restart from damage"] = outcome(folder, mesh, lambda: found_newest(folder, mesh))
    with unreadable("step-00000011/pieces-00001" if mesh.rank == 1 else "no such file"):
        seen["restart without access"] = outcome(folder, mesh, lambda: found_newest(folder, mesh))
    return seen


def found_newest(root: Path, mesh: Mesh) -> str:
    """The step that is taken, and what is said of others."""
    said: list[str] = []
    found = read.newest(root, said.append, mesh)
    return f"{found.step if found else None} {said}"


@contextmanager
def unreadable(name: str) -> Iterator[None]:
    """No file whose path contains this may be read."""
    real = os.open

    def opened(path: Any, *arguments: Any, **more: Any) -> int:
        if name in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        yield


def overlap(rank: int) -> list[Piece]:
    """On one rank a box that meets two others'."""
    return [piece("embedding", "master", 9, ((3, 4), (1, 3)), (0, 2))] if rank == 1 else []


def _reads(checkpoint: read.Checkpoint, step: int) -> bool:
    """Whether all tensors, and a region across all ranks' pieces, are what was saved by all."""
    box = ((2, 6), (1, 5))
    region = full("embedding", "master", step)[2:6, 1:5]
    assert checkpoint.state == {"step": step, "rank": 0} and box_shape(box) == (4, 4)
    wholes = [torch.equal(checkpoint.read(n, k), full(n, k, step)) for n in SHAPES for k in KINDS]
    return all(wholes) and torch.equal(checkpoint.read("embedding", "master", box), region)


def killed(root: str) -> str:
    """The second rank is killed while it writes; returns what the others then see."""
    mesh, folder = make_mesh(1), Path(root)
    save(folder, 1, mesh)

    def dying() -> Iterator[Piece]:
        mine = pieces(mesh.rank, 2)
        yield mine[0]
        if mesh.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield from mine[1:]

    try:
        save(folder, 2, mesh, dying())
    except RunFault as fault:
        return str(fault)
    return "saved"
