"""Saves onto disks that are full or read-only, as root.

Usage: python -m tests.checkpoint.full_disks ROOT. Writes ROOT/report.json: case -> what was seen.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from llmkit.checkpoint import read, write
from llmkit.checkpoint.pieces import Piece
from llmkit.errors import RunFault, UserError
from llmkit.run_folder import RunFolder
from tests.mounts import mount, own_mounts, tmpfs

ELEMENTS = 2_000_000


def save(root: Path, step: int) -> str:
    """Save 8 MB; the message if that fails."""
    tensor = torch.full((ELEMENTS,), float(step))
    piece = Piece("w", "master", (ELEMENTS,), ((0, ELEMENTS),), (0, ELEMENTS), tensor)
    files = {"tokenizer.json": b"{}"}
    try:
        write.save(root, step, [piece], state={}, model={}, config={}, extra_files=files, keep_last=2)
    except RunFault as fault:
        return str(fault)
    return "saved"


def look(root: Path) -> dict[str, Any]:
    """The newest step, and all names there."""
    found = read.newest(root, lambda line: None)
    return {"newest": found.step if found else None, "names": sorted(os.listdir(root))}


def full(disk: Path, options: str) -> dict[str, Any]:
    """The second save does not fit; after more room was made it does."""
    root = tmpfs(disk, options) / "checkpoints"
    first, second = save(root, 1), save(root, 2)
    seen = look(root)
    mount("-o", "remount,size=64m,nr_inodes=1000", disk)
    return {"first": first, "second": second, "seen": seen, "third": save(root, 2), "after": look(root)}


def read_only(folder: Path) -> dict[str, Any]:
    """The disk turns read-only after the first save."""
    with RunFolder.open(folder, "first"):
        first = save(folder / "checkpoints", 1)
    mount("--bind", folder, folder)
    mount("-o", "remount,ro,bind", folder)
    second = save(folder / "checkpoints", 2)
    try:
        RunFolder.open(folder, "second").close()
        opened = "opened"
    except UserError as error:
        opened = str(error)
    return {"first": first, "second": second, "seen": look(folder / "checkpoints"), "opened": opened}


def main(base: Path) -> None:
    if problem := own_mounts():
        report: dict[str, Any] = {"cannot": problem}
    else:
        report = {
            "bytes": full(base / "bytes", "size=12m"),
            "inodes": full(base / "inodes", "size=64m,nr_inodes=9"),
            "read-only": read_only(base / "read-only"),
        }
    (base / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
