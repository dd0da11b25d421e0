"""A run on documents of 16,384 tokens, cut in pieces for four processes, is that of one process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from tests.limits import HANG
from tests.program import SENTENCE, make_project, rows, start_ranks

LENGTH, RANKS = 16_384, 4
SETTINGS = (
    f"data.sequence_length={LENGTH}", "train.global_batch_size=1", "train.max_steps=3", "optimizer.eps=1e-5",
    "model.hidden_dropout=0", "evaluate.every_steps=0", "data.sources=[{type: text, path: long}]",
)  # fmt: skip
FORMS = ("ulysses", "ring")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose documents are longer than a row, in which one process and each form have trained."""
    path = tmp_path_factory.mktemp("long-rows")
    make_project(path)
    (path / "long").mkdir()
    draw = random.Random(0)
    for number in range(8):
        words = (draw.choice(SENTENCE.split()) for _ in range(LENGTH // 3))
        (path / f"long/{number}.txt").write_text(f"{' '.join(words)}.\n")
    trained(path, 1, "run.name=one")
    for form in FORMS:
        layout = (f"parallel.context_parallel_size={RANKS}", f"parallel.context_parallel_form={form}")
        trained(path, RANKS, f"run.name={form}", *layout, "parallel.zero_stage=1")
    return path


def trained(path: Path, ranks: int, *settings: str) -> None:
    """Trains a run to its end."""
    for process in start_ranks(path, ranks, "train", "tiny.yaml", *SETTINGS, *settings):
        assert process.wait(10 * HANG) == 0, process.output()


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if "loss" in row]


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", FORMS)
def test_four_processes_train_as_one(folder: Path, form: str) -> None:
    one, found = folder / "runs/one", folder / "runs" / form
    for wanted, row in zip(steps(one), steps(found), strict=True):
        assert row["tokens"] == wanted["tokens"] == LENGTH * row["step"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)
    first, second = open_checkpoint(one), open_checkpoint(found)
    worst = 0.0
    for kind in first.kinds():
        for name in first.names(kind):
            a, b = (each.read(name, kind) for each in (first, second))
            off = float((a - b).norm() / a.norm().clamp_min(1e-12))
            assert off < 1e-5, (kind, name, off)
            worst = max(worst, off)
    losses = [abs(a["loss"] / b["loss"] - 1.0) for a, b in zip(steps(one), steps(found), strict=True)]
    print(f"{form}: loss {max(losses):.1e}, a tensor of the state {worst:.1e}")
