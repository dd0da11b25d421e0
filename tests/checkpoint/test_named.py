"""Checkpoints of a run by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint.keeping import Best, write_best
from llmkit.checkpoint.named import named, split_name
from llmkit.errors import UserError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with folders of checkpoints of steps 10, 20 and 30."""
    for step in (10, 20, 30):
        (tmp_path / f"runs/demo/checkpoints/step-{step:08d}").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/demo")


def test_a_step_and_the_best(run: Path) -> None:
    root = run / "checkpoints"
    write_best(root, Best(10, 2.5))
    for text, step in (
        ("@20", 20), ("@step-20", 20), ("@step-00000020", 20), ("@best", 10), ("/checkpoints@best", 10),
        ("/checkpoints@30", 30),
    ):  # fmt: skip
        assert named(Path(f"{run}{text}")) == root / f"step-{step:08d}", text


def test_other_paths_stay_as_they_are(run: Path) -> None:
    Path("model@best").mkdir()
    for path in ("runs/demo", "nowhere", "user@host/x", "a@b", "model@best"):
        assert named(Path(path)) == Path(path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("runs/demo@40", r"has no checkpoint of step 40, but of 10, 20, 30; name one of these"),
        ("runs/demo@best", r"no checkpoint in runs/demo/checkpoints is marked as the best; name a step"),
        ("runs/demo@bets", r"behind @ stands best or a step, as in runs/demo@best or runs/demo@1000"),
        ("nowhere@best", r"nowhere@best: there is no checkpoint in nowhere; name a run folder that has one"),
    ],
)
def test_what_there_is_not_is_one_message(run: Path, path: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        named(Path(path))


def test_a_best_one_that_is_gone(run: Path) -> None:
    write_best(run / "checkpoints", Best(5, 2.5))
    with pytest.raises(UserError, match="has no checkpoint of step 5"):
        named(Path("runs/demo@best"))


def test_a_name_is_split_without_looking_at_the_disk() -> None:
    found = {
        text: split_name(text) for text in ("a@best", "a@1", "a@b@step-2", "a@x", "@best", "a", "a@1/b")
    }
    assert found == {
        "a@best": ("a", "best"), "a@1": ("a", "1"), "a@b@step-2": ("a@b", "step-2"), "a@x": ("a@x", ""),
        "@best": ("@best", ""), "a": ("a", ""), "a@1/b": ("a@1/b", ""),
    }  # fmt: skip


def test_checkpoints_of_a_run_with_an_at_in_its_folder(
    save_step: Callable[..., Any], tmp_path: Path
) -> None:
    folder = save_step(1)
    assert named(tmp_path.parent / f"{tmp_path.name}@1") == folder
