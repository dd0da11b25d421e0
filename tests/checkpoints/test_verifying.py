"""`llmkit checkpoint verify`: every damaged file and block is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import files, format, index_file
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import Checkpoint, load, verify
from llmkit.checkpoint.write import save
from llmkit.checkpoints.verifying import verify_command
from llmkit.cli import main
from llmkit.parallel.slices import full_box
from tests.ranks import run_ranks

PIECES = "pieces-00000-00000.safetensors"


def flip(path: Path, *places: int) -> None:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 1
    path.write_bytes(content)


def test_good_checkpoints_are_good(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", "runs/tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("every block is as it was written" in line for line in lines)


def test_all_that_is_damaged_is_named(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("runs/tiny/checkpoints/step-00000008")
    flip(folder / PIECES, 5, -1)
    assert main(["checkpoint", "verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"{folder}: 1 damaged" in out and f"{folder / PIECES}: bytes 0 to" in out
    (folder / "tokenizer.json").unlink()
    (folder.parent / "step-00000002/manifest.json").write_bytes(b"{}")
    assert main(["checkpoint", "verify", "runs/tiny"]) == 1
    out = capsys.readouterr().out
    assert f"{folder}: 2 damaged" in out and "tokenizer.json: No such file" in out
    assert "step-00000002: 1 damaged" in out and "step-00000004: every block" in out


def test_json_says_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", "runs/tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["good"], found["quick"], len(found["checkpoints"])) == (True, False, 4)
    folder = Path("runs/tiny/checkpoints/step-00000008")
    assert found["checkpoints"][-1] == {
        "path": str(folder), "good": True, "bytes": load(folder).nbytes, "problems": [],
    }  # fmt: skip
    flip(folder / PIECES, 5)
    assert main(["checkpoint", "verify", "runs/tiny", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["good"] and [each["good"] for each in found["checkpoints"]] == [True, True, True, False]
    assert "bytes 0 to" in found["checkpoints"][-1]["problems"][0]


def test_each_damaged_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (format, files, index_file):
        monkeypatch.setattr(module, "BLOCK", 4096)
    data = torch.arange(6000.0)
    piece = Piece("embedding", "master", (60, 100), full_box((60, 100)), (0, 6000), data)
    folder = save(tmp_path, 1, [piece], state={}, model={}, config={}, extra_files={}, keep_last=1)
    size = (folder / PIECES).stat().st_size
    flip(folder / PIECES, 4096 * 3 + 1, 4096 * 5, 4096 * 5 - 1, 4096 * 5 + 7, size - 1)
    starts = [line.split(": bytes ")[1].split()[0] for line in verify(folder)]
    assert starts == [str(4096 * block) for block in (3, 4, 5)] and size > 4096 * 5 + 100
    shared = [line for share in range(3) for line in load(folder).problems(share, 3)]
    assert sorted(shared) == sorted(verify(folder))


def verify_here(place: str) -> int:
    """The exit code of a rank."""
    return verify_command(Path(place), False, os.environ)


def test_the_ranks_of_a_launch_share_the_work(project: Path) -> None:
    folder = Path("runs/tiny/checkpoints/step-00000008")
    flip(folder / PIECES, -1)
    function = "tests.checkpoints.test_verifying:verify_here"
    assert run_ranks(2, function, joined=False, place=str(project / "runs/tiny")) == [1, 1]
    good = str(project / folder.parent / "step-00000006")
    assert run_ranks(2, function, joined=False, place=good) == [0, 0]


def test_one_that_is_deleted_meanwhile_is_no_damage(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted(checkpoint: Checkpoint, *_: Any, **__: Any) -> Iterator[str]:
        if checkpoint.step == 2:
            shutil.rmtree(checkpoint.path)
            yield f"{checkpoint.path}: No such file or directory"

    monkeypatch.setattr(Checkpoint, "problems", deleted)
    assert main(["checkpoint", "verify", "runs/tiny"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_quick_looks_at_sizes_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/tiny/checkpoints/step-00000008")
    flip(folder / PIECES, -1)
    assert main(["checkpoint", "verify", str(folder), "--quick"]) == 0
    assert "files of the right sizes, not read" in capsys.readouterr().out
    with open(folder / PIECES, "ab") as file:
        file.write(b"x")
    assert main(["checkpoint", "verify", str(folder), "--quick"]) == 1
    assert "bytes instead of" in capsys.readouterr().out
