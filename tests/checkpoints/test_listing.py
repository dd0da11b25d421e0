"""`llmkit checkpoint list`: what there is to know of each checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmkit.checkpoint.keeping import Best, write_best
from llmkit.checkpoint.read import Checkpoint
from llmkit.checkpoints import listing
from llmkit.checkpoints.listing import kept_by, lines_of
from llmkit.cli import main
from tests.program import recorded, rows


def test_a_run_is_listed_with_what_it_has_recorded(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "list", "runs/tiny"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["checkpoint", "saved", "size", "loss", "held-out", "layout", "kept", "state"]
    assert len(lines) == 4 and lines[-1].endswith("good") and "newest" in lines[-1]
    assert all(line.endswith("sizes right") and "keep_last 9" in line for line in lines[:-1])
    assert main(["checkpoint", "list", "runs/tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["step"] for line in found] == [2, 4, 6, 8]
    losses = {row["step"]: row["eval_loss"] for row in rows(Path("runs/tiny")) if "eval_loss" in row}
    assert [line["heldout"] for line in found] == [losses.get(step) for step in (2, 4, 6, 8)]
    assert found[1]["heldout"] is not None
    saves = {row["path"]: row["time"] for row in recorded("save")}
    assert [line["saved"][:19] for line in found] == [saves[line["name"]][:19] for line in found]
    folder = Path(found[0]["path"])
    content = sum(file.stat().st_size for file in folder.iterdir() if file.name != "manifest.json")
    assert found[0]["size"] == content and found[0]["layout"] == "1"


def test_damaged_ones_are_passed_over_until_one_is_good(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path("runs/tiny/checkpoints")
    (root / "step-00000008/manifest.json").write_bytes(b"{}")
    pieces = root / "step-00000006/pieces-00000-00000.safetensors"
    pieces.write_bytes(pieces.read_bytes()[:-1] + b"?")
    (root / "step-00000002/tokenizer.json").unlink()
    assert [line.state for line in lines_of(Path("runs/tiny"), quick=False)] == [
        "damaged", "good", "damaged", "damaged"
    ]  # fmt: skip
    assert [line.state for line in lines_of(root, quick=True)] == [
        "damaged", "sizes right", "sizes right", "damaged"
    ]  # fmt: skip
    assert main(["checkpoint", "list", "runs/tiny"]) == 0
    out = capsys.readouterr().out
    assert "step-00000006 is damaged: runs/tiny/checkpoints/step-00000006/pieces" in out


def test_a_checkpoint_alone_and_one_of_another_version(project: Path) -> None:
    (line,) = lines_of(Path("runs/tiny/checkpoints/step-00000004"), quick=False)
    assert (line.step, line.state, line.kept) == (4, "good", []) and line.heldout is not None
    old = Path(__file__).parents[1] / "old_runs/2026-11-28-built/step-00000004"
    (line,) = lines_of(old, quick=False)
    assert line.state == "good" and line.layout == "written by 1"


def test_why_a_run_keeps_what_it_keeps() -> None:
    folders = [Path(f"step-{step:08d}") for step in (100, 150, 200, 250)]
    found = kept_by(folders, {"checkpoint": {"keep_last": 2, "keep_every": 100}})
    assert list(found.values()) == [["keep_every 100"], [], ["keep_last 2", "keep_every 100"], ["newest"]]
    assert list(kept_by(folders, {}).values()) == [[], [], [], []]
    assert list(kept_by(folders, {}, Best(150, 2.5)).values()) == [[], ["best"], [], []]


def test_the_best_one_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path("runs/tiny/checkpoints")
    write_best(root, Best(4, 2.5))
    assert [line.kept for line in lines_of(root, quick=True)][1] == ["keep_last 9", "best"]
    (root / "best.json").write_text("{")
    assert [line.kept for line in lines_of(root, quick=True)][1] == ["keep_last 9"]
    assert "best.json: it does not say" in capsys.readouterr().err


def test_one_that_is_deleted_meanwhile_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(folder: Path, read: bool) -> tuple[Checkpoint | None, str, str]:
        if folder.name == "step-00000002":
            shutil.rmtree(folder)
        return real(folder, read)

    real = listing._look
    monkeypatch.setattr(listing, "_look", look)
    assert [line.step for line in lines_of(Path("runs/tiny"), quick=True)] == [4, 6, 8]
