"""What is looked at, and under which name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.doctor.scope import Scope, folder_of_runs


def test_a_scope_reaches_another_process_as_it_is() -> None:
    scope = Scope("/runs", 8, "my.yaml", "abc", True)
    assert Scope(**json.loads(json.dumps(scope.to_json()))) == scope


def test_the_folder_is_that_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_of_runs(None) == str(tmp_path)
    (tmp_path / "runs").mkdir()
    assert folder_of_runs(None) == str(tmp_path / "runs")
    assert folder_of_runs("other") == str(tmp_path / "other")
