"""A time budget in runs whose sources end."""

from __future__ import annotations

import re

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from tests.program import events, make_project, rows

BUDGET = ["train.max_steps=null", "train.max_minutes=5", "evaluate.every_steps=0"]


@pytest.mark.parametrize("batch", [4, 64])
def test_a_run_ends_with_the_supply_where_that_is_shorter_than_its_time(batch, tmp_path, monkeypatch, capsys):
    """Whether the steps could be timed before (4 rows a step) or not (64)."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    limits = ["data.sources.0.max_epochs=1", f"train.global_batch_size={batch}"]
    command = ["train", "tiny.yaml", *BUDGET, *limits]
    assert main(command) == 0
    out = capsys.readouterr().out
    told = re.search(r"max_steps = (\d+): .* lasts until then \(data.sources.0.max_epochs is 1\)", out)
    assert told, out
    folder = tmp_path / "runs" / "tiny"
    assert rows(folder)[-1]["step"] == open_checkpoint(folder).step == int(told[1])
    assert events(folder)[-1] == "done"
    assert events(folder).count("max_steps") == 1
    assert main(command) == 0, "it is finished"
