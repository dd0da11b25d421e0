"""What a rank writes down of the rows it trains on, and what it tells of those it cannot use."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmkit.data.loader import Step
from llmkit.loop.samples import SampleLog, TellLeftOut, cut_back_samples, samples_file
from llmkit.parallel.mesh import Mesh


def run(folder: Path, step: int = 0, tensor_rank: int = 0, log_samples: bool = True) -> Any:
    """As much of a run as this needs: data rank 1 of 3."""
    return SimpleNamespace(
        config=SimpleNamespace(monitor=SimpleNamespace(log_samples=log_samples)),
        mesh=Mesh(2 + tensor_rank, 6, {"tensor": 2}),
        folder=SimpleNamespace(path=folder),
        progress=SimpleNamespace(step=step),
    )


def batch(first: int, sources: list[int], hashes: list[int]) -> Step:
    return Step([], 0, 0, 4, first, np.array([sources]), np.array(hashes, dtype=np.uint64))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in samples_file(folder, 1).read_text().splitlines()]


def test_a_line_a_step_with_the_positions_of_this_rank_and_no_row_that_only_fills(tmp_path: Path) -> None:
    log = SampleLog(run(tmp_path))
    log.record(1, batch(0, [0, -1], [7, 0]))
    log.record(2, batch(4, [0, 1], [255, 2**64 - 1]))
    log.close()
    assert lines(tmp_path) == [
        {"step": 1, "first": 0, "positions": [1], "hashes": [f"{7:016x}"]},
        {"step": 2, "first": 4, "positions": [4, 7], "hashes": ["00000000000000ff", "f" * 16]},
    ]


def test_a_resumed_run_forgets_what_it_does_again(tmp_path: Path) -> None:
    log = SampleLog(run(tmp_path))
    for step in (1, 2, 3):
        log.record(step, batch(4 * step, [0], [step]))
    log.close()
    samples_file(tmp_path, 5).write_text('{"step": 1}\n{"step": 2}\n')  # of a rank that is no more
    cut_back_samples(tmp_path, 1)
    assert samples_file(tmp_path, 5).read_text() == '{"step": 1}\n'
    again = SampleLog(run(tmp_path, step=1))
    again.record(2, batch(8, [0], [9]))
    again.close()
    assert [(row["step"], row["hashes"]) for row in lines(tmp_path)] == [
        (1, [f"{1:016x}"]), (2, [f"{9:016x}"]),
    ]  # fmt: skip


def test_nothing_is_written_unless_asked_for_and_peers_do_not_write_twice(tmp_path: Path) -> None:
    for one in (run(tmp_path, log_samples=False), run(tmp_path, tensor_rank=1)):
        SampleLog(one).record(1, batch(0, [0], [1]))
    assert not samples_file(tmp_path, 1).exists()


def test_documents_that_are_left_out_are_told_at_once_and_as_they_double() -> None:
    told: list[str] = []
    loader = SimpleNamespace(left_out={"web": Counter()}, notes=["web: a kept unit is damaged"])
    running: Any = SimpleNamespace(loader=loader, console=SimpleNamespace(note=told.append))
    tell = TellLeftOut()
    for _ in range(9):
        tell.tell(running)
        loader.left_out["web"]["empty"] += 1
    assert told == [
        "data: web: a kept unit is damaged",
        *(f"data: web: {n} document{'s' * (n > 1)} left out: {n} empty, so far" for n in (1, 2, 4, 8)),
    ]
