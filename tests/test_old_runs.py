"""Runs of earlier versions go on, are evaluated and sampled by this one.

old_runs/DATE-NAME holds what a version wrote: a checkpoint in the middle of a run, the configuration and text
it was started with, and the rows of the whole run, held-out loss included. One has the whole run folder, as a
run left it that was killed two steps after its checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.program import rows

OLD_RUNS = sorted((Path(__file__).parent / "old_runs").iterdir())
CONTINUATION = {
    "2026-11-22-folder": "the catd og fd th t\n",
    "2026-11-28-built": "the catat roewhilewhile the the the the the\n",
    "2026-11-28-live": "the catilhhhhnds.hh\n",
}
"""Greedy sample of the stored checkpoint, with a penalty for repetition, as its own version printed it."""
HELD_OUT = {
    "2026-11-22-folder": (5.1817, "1,680"),
    "2026-11-28-built": (5.2207, "976"),
    "2026-11-28-live": (5.2352, "3,332"),
}
"""Held-out loss of the stored checkpoint and the targets of it, as its own version printed them."""
REFUSED = {"2026-11-28-live": "an earlier version of llmkit, which read live sources in a mixture unevenly"}
"""Why the run goes on only where a change of the data is allowed."""
TODAY = {
    "heldout_every: 6": "validation_fraction: 0.1667",
    "lanes:": "stream_shards:",
    "decay_share:": "decay_fraction:",
    "final_share:": "min_lr_ratio:",
    "checkpoint_every:": "activation_checkpointing_every:",
}
"""Settings with the names that they had, and with those of today."""


@pytest.fixture(params=OLD_RUNS, ids=lambda path: path.name)
def old(request, tmp_path, monkeypatch):
    """The files of an old run; a copy of its run folder is in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(request.param / "texts.jsonl", "texts.jsonl")
    text = (request.param / "run.yaml").read_text()  # with the names of today, as its user is told to write
    for before, now in TODAY.items():
        text = text.replace(before, now)
    Path("run.yaml").write_text(text)
    for step in request.param.glob("step-*"):
        shutil.copytree(step, f"runs/small/checkpoints/{step.name}")
    if (request.param / "folder").exists():
        shutil.copytree(request.param / "folder", "runs/small")
    return request.param


def expected(old: Path) -> dict[int, dict[str, float]]:
    """For each step what the run logged then, evaluations included."""
    wanted: dict[int, dict[str, float]] = {}
    for line in (old / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        wanted.setdefault(row.pop("step"), {}).update(row)
    return wanted


def test_old_names_of_settings_are_refused_with_the_new_ones(old, capsys):
    shutil.copy(old / "run.yaml", "run.yaml")
    assert main(["train", "run.yaml"]) == 2
    assert "data.heldout_every is called data.validation_fraction now" in capsys.readouterr().err


def test_it_goes_on_as_it_would_have_or_is_refused_by_name(old, capsys):
    if old.name in REFUSED:
        assert main(["train", "run.yaml"]) == 2
        assert REFUSED[old.name] in capsys.readouterr().err
        assert main(["train", "run.yaml", "--allow-data-change"]) == 0
        assert [row["step"] for row in rows(Path("runs/small")) if "loss" in row] == [5, 6, 7, 8]
        return
    assert main(["train", "run.yaml"]) == 0
    wanted, seen = expected(old), {}
    for row in rows(Path("runs/small")):
        seen.setdefault(row["step"], {}).update(row)
    assert sorted(seen) == ([1, 2, 3, 4] if (old / "folder").exists() else []) + [5, 6, 7, 8]
    for step, row in seen.items():
        for name, value in wanted[step].items():
            assert row[name] == pytest.approx(value, rel=1e-4 if name == "grad_norm" else 1e-5), (step, name)


def test_it_is_evaluated(old, capsys):
    loss, targets = HELD_OUT[old.name]
    assert main(["evaluate", "runs/small", "--precision", "fp32"]) == 0
    found = re.search(r"held-out loss\s+([\d.]+) nats a token, ([\d,]+)", capsys.readouterr().out)
    assert (float(found[1]), found[2]) == (pytest.approx(loss, abs=2e-4), targets)


def test_it_is_sampled(old, capsys):
    command = ["generate", "runs/small", "--prompt", "the cat", "--precision", "fp32"]
    options = ["--temperature", "0", "--repetition-penalty", "1.5", "--max-new-tokens", "12"]
    assert main([*command, *options]) == 0
    assert capsys.readouterr().out == CONTINUATION[old.name]
