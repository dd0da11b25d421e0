"""A project with pairs, made once for all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.preference.pairs_project import make_pairs_project


@pytest.fixture(scope="session")
def pairs_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project; not to be changed."""
    folder = tmp_path_factory.mktemp("pairs")
    make_pairs_project(folder)
    return folder


@pytest.fixture
def pairs(pairs_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as working directory."""
    shutil.copytree(pairs_made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
