"""`llmkit checkpoint prune`: what is deleted, and what never is."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint.keeping import Best, write_best
from llmkit.checkpoints.pruning import choose
from llmkit.cli import main
from llmkit.ownership.owner import Owner
from llmkit.ownership.take import take
from llmkit.run_folder import LOCK

ROOT = Path("runs/tiny/checkpoints")
Prune = Callable[..., int]


class Terminal(io.StringIO):
    """Input that is typed."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def prune(project: Path, capsys: pytest.CaptureFixture[str]) -> Prune:
    """prune(*options): the exit code."""

    def run(*options: str, path: str = "runs/tiny") -> int:
        return main(["checkpoint", "prune", path, *options])

    return run


def steps() -> list[int]:
    return sorted(int(folder.name[5:]) for folder in ROOT.glob("step-*"))


def damage(step: int) -> None:
    (ROOT / f"step-{step:08d}/manifest.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--keep-last", "2"], [6, 8]),
        (["--keep-last", "1", "--keep-every", "4"], [4, 8]),
        (["--keep-every", "6"], [6, 8]),
        (["--keep-last", "9"], [2, 4, 6, 8]),
        (["--keep-last", "1", "--dry-run"], [2, 4, 6, 8]),
    ],
)
def test_what_is_kept(prune: Prune, options: list[str], left: list[int]) -> None:
    assert prune(*options) == 0
    assert steps() == left
    assert prune(*options) == 0
    assert steps() == left


def test_programs_get_what_is_deleted_and_are_not_asked(
    prune: Prune, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert prune("--keep-last", "2", "--json") == 2
    assert "say --yes to delete, or --dry-run" in capsys.readouterr().err
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in sorted(ROOT.iterdir())[:2]]
    found = []
    for option in ("--dry-run", "--yes"):
        assert steps() == [2, 4, 6, 8]
        assert prune("--keep-last", "2", "--json", option) == 0
        found.append(json.loads(capsys.readouterr().out))
    deleted = [f"{ROOT}/step-{step:08d}" for step in (2, 4)]
    assert [each.pop("dry_run") for each in found] == [True, False] and steps() == [6, 8]
    assert found == [{"deleted": deleted, "freed_bytes": sum(sizes)}] * 2


def test_what_goes_while_a_dry_run_looks_counts_nothing(
    prune: Prune, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run under way deletes its own old ones meanwhile, between the choice and the look at their sizes."""

    def choose_and_delete(*arguments: Any) -> list[Path]:
        chosen = choose(*arguments)
        shutil.rmtree(chosen[0])
        return chosen

    monkeypatch.setattr("llmkit.checkpoints.pruning.choose", choose_and_delete)
    size = sum(file.stat().st_size for file in (ROOT / "step-00000004").iterdir())
    assert prune("--keep-last", "2", "--json", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == size
    assert steps() == [4, 6, 8]


@pytest.mark.parametrize("options", [["--dry-run", "--json"], ["--yes"]])
def test_a_folder_that_cannot_be_read_is_one_message(
    prune: Prune, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    def denied(folder: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    def choose_and_lock(*arguments: Any) -> list[Path]:
        chosen = choose(*arguments)
        monkeypatch.setattr(Path, "iterdir", denied)
        return chosen

    monkeypatch.setattr("llmkit.checkpoints.pruning.choose", choose_and_lock)
    assert prune("--keep-last", "2", *options) == 1
    wanted = f"llmkit: prune: {ROOT}/step-00000002 cannot be read: Permission denied\n"
    assert capsys.readouterr().err == wanted and steps() == [2, 4, 6, 8]


def test_the_best_one_stays(prune: Prune, capsys: pytest.CaptureFixture[str]) -> None:
    write_best(ROOT, Best(4, 2.5))
    assert prune("--keep-last", "1") == 0
    assert steps() == [4, 8]
    (ROOT / "best.json").write_text("{")
    assert prune("--keep-last", "1") == 1
    assert "best.json: it does not say which checkpoint is the best" in capsys.readouterr().err
    assert steps() == [4, 8]


def test_it_says_what_it_does(prune: Prune, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune("--keep-last", "2", "--dry-run") == 0
    shown = [f"would delete {ROOT / name}" for name in ("step-00000002", "step-00000004")]
    assert capsys.readouterr().out.splitlines() == shown
    assert prune("--keep-last", "2") == 0
    *deleted, summary = capsys.readouterr().out.splitlines()
    assert deleted == [f"deleted {ROOT / name}" for name in ("step-00000002", "step-00000004")]
    assert summary.startswith("2 deleted, ") and summary.endswith(" freed")
    assert prune("--keep-last", "2") == 0
    assert capsys.readouterr().out == "nothing to delete\n"


def test_damaged_ones_do_not_count_as_kept(prune: Prune, capsys: pytest.CaptureFixture[str]) -> None:
    damage(8)
    damage(4)
    assert prune("--keep-last", "1") == 0
    assert steps() == [6, 8]  # 8 may be good after all, where a disk failed for a moment
    assert "step-00000008 is damaged, and left as it is" in capsys.readouterr().err


def test_the_last_good_one_is_never_deleted(prune: Prune, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (4, 6, 8):
        damage(step)
    assert prune("--keep-last", "1") == 0 and steps() == [2, 4, 6, 8]
    damage(2)
    assert prune("--keep-last", "1") == 1 and steps() == [2, 4, 6, 8]
    assert "no checkpoint in runs/tiny/checkpoints is good; nothing is deleted" in capsys.readouterr().err


def test_a_run_that_is_under_way_keeps_its_checkpoints(
    prune: Prune, capsys: pytest.CaptureFixture[str]
) -> None:
    def silent(line: str) -> None: ...

    owner = Owner.of_this_process("llmkit train", {})
    claim = take(Path("runs/tiny"), owner, lock_name=LOCK, take_over=False, ask=silent, note=silent)
    try:
        assert prune("--keep-last", "1") == 2
    finally:
        claim.release()
    err = capsys.readouterr().err
    assert "the run runs/tiny is under way (process" in err and "llmkit train" in err
    assert steps() == [2, 4, 6, 8]
    assert prune("--keep-last", "1") == 0 and steps() == [8]


def test_the_run_goes_on_afterwards(prune: Prune) -> None:
    from tests.program import train

    assert prune("--keep-last", "1") == 0
    settings = ["checkpoint.every_steps=2", "checkpoint.keep_last=9", "model.hidden_dropout=0"]
    assert train(*settings, "train.max_steps=9", "evaluate.every_steps=4") == 0
    assert steps() == [8, 9]


@pytest.mark.parametrize(("answer", "left"), [("y", [8]), ("", [2, 4, 6, 8]), ("no", [2, 4, 6, 8])])
def test_it_asks_on_a_terminal(
    prune: Prune, monkeypatch: pytest.MonkeyPatch, answer: str, left: list[int]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    assert prune("--keep-last", "1") == 0 and steps() == left
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert prune("--keep-last", "1", "--yes") == 0 and steps() == [8]


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        ("runs/tiny", [], "say what to keep, by --keep-last N or --keep-every N"),
        (str(ROOT / "step-00000004"), ["--keep-last", "1"], "is one checkpoint; name its run folder"),
        ("nowhere", ["--keep-last", "1"], "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_message(
    prune: Prune, capsys: pytest.CaptureFixture[str], path: str, options: list[str], says: str
) -> None:
    assert prune(*options, path=path) == 2
    assert says in capsys.readouterr().err and steps() == [2, 4, 6, 8]


def test_a_link_is_deleted_and_what_it_names_is_not(prune: Prune) -> None:
    (ROOT / "step-00000004").rename("elsewhere")
    (ROOT / "step-00000004").symlink_to(Path("elsewhere").absolute())
    assert prune("--keep-last", "1") == 0
    assert steps() == [8] and Path("elsewhere/manifest.json").exists()
