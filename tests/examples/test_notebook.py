"""The notebook-style example, run as a script on a small project."""

from __future__ import annotations

import runpy
import shutil
import sys

from tests.examples.project import EXAMPLES
from tests.program import make_project


def test_it_trains_plots_and_samples(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    (tmp_path / "configs").mkdir()
    shutil.move(tmp_path / "tiny.yaml", tmp_path / "configs" / "demo.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # also where it is installed
    monkeypatch.setattr(sys, "argv", ["notebook.py", "train.max_steps=6", "run.deterministic=false"])
    runpy.run_path(str(EXAMPLES / "notebook.py"))
    shown = capsys.readouterr().out
    assert "32 wide, 6 steps" in shown and "in 6 steps" in shown
    assert shown.count("  #") == 6  # a bar for each step
    assert "\nimport " in shown and "held out: " in shown and " weights" in shown
