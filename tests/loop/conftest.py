"""A finished run, made once for all tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.copies import copier
from tests.copies.stores import PutServer
from tests.limits import HANG
from tests.program import make_project, train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run of twelve steps; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train() == 0
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copying_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project as working directory, whose runs wait for their copies; without proxies."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(copier, "END_SECONDS", HANG)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def put_server() -> Iterator[PutServer]:
    """A web server that takes copies."""
    server = PutServer()
    yield server
    server.close()
