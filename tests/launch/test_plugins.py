"""Plugins that are not the same on all ranks."""

from __future__ import annotations

from tests.program import make_project
from tests.ranks import run_ranks


def test_plugins_that_differ_between_ranks_end_the_run_at_its_start(tmp_path):
    make_project(tmp_path)
    results = run_ranks(2, "tests.launch.plugin_cases:train", joined=False, folder=str(tmp_path))
    assert [code for code, _ in results] == [2, 2]
    assert "plugin their_plugin" in "".join(text for _, text in results)
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))
