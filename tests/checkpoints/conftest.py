"""A finished run with four checkpoints, made once for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.program import make_project, train


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `tiny`, which was evaluated at steps 2, 4 and 8, and `other` of another seed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_project(folder)
    settings = [
        "checkpoint.every_steps=2", "checkpoint.keep_last=9", "train.max_steps=8", "model.hidden_dropout=0"
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(*settings, "train.max_steps=2") == 0  # evaluates at its end, too
        assert train(*settings, "evaluate.every_steps=4") == 0
        assert train(*settings, "run.name=other", "run.seed=7") == 0
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test is."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder
