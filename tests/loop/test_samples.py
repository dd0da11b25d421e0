"""What a rank writes down of the rows it trains on, and what it tells of those it cannot use."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from llmkit.data.rank_batch import RankBatch
from llmkit.loop.samples import LeftOutReport, SampleLog, cut_back_samples, samples_file
from llmkit.ownership.claim import Claim
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder


def mesh(tensor_rank: int = 0) -> Mesh:
    """Data rank 1 of 3, each of two tensor-parallel ranks."""
    return Mesh(2 + tensor_rank, 6, {"tensor": 2})


def batch(first: int, sources: list[int], hashes: list[int]) -> RankBatch:
    """As of data rank 1 of 3."""
    positions = first + (1 - first) % 3 + 3 * np.arange(len(sources))
    return RankBatch([], 0, 0, 4, first, np.array([sources]), np.array(hashes, dtype=np.uint64), positions)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in samples_file(folder, 1).read_text().splitlines()]


def run_folder(path: Path) -> RunFolder:
    return RunFolder(path, Claim(path, 1))


def test_a_line_a_step_with_the_positions_of_this_rank_and_no_row_that_only_fills(tmp_path: Path) -> None:
    log = SampleLog(run_folder(tmp_path), mesh())
    log.record(1, batch(0, [0, -1], [7, 0]))
    log.record(2, batch(4, [0, 1], [255, 2**64 - 1]))
    log.close()
    assert lines(tmp_path) == [
        {"step": 1, "first": 0, "positions": [1], "hashes": [f"{7:016x}"]},
        {"step": 2, "first": 4, "positions": [4, 7], "hashes": ["00000000000000ff", "f" * 16]},
    ]


def test_a_resumed_run_forgets_what_it_does_again(tmp_path: Path) -> None:
    log = SampleLog(run_folder(tmp_path), mesh())
    for step in (1, 2, 3):
        log.record(step, batch(4 * step, [0], [step]))
    log.close()
    samples_file(tmp_path, 5).write_text('{"step": 1}\n{"step": 2}\n')  # of a rank that is no more
    cut_back_samples(tmp_path, 1)
    assert samples_file(tmp_path, 5).read_text() == '{"step": 1}\n'
    again = SampleLog(run_folder(tmp_path), mesh())
    again.record(2, batch(8, [0], [9]))
    again.close()
    assert [(row["step"], row["hashes"]) for row in lines(tmp_path)] == [
        (1, [f"{1:016x}"]), (2, [f"{9:016x}"]),
    ]  # fmt: skip


def test_peers_do_not_write_twice(tmp_path: Path) -> None:
    SampleLog(run_folder(tmp_path), mesh(tensor_rank=1)).record(1, batch(0, [0], [1]))
    assert not samples_file(tmp_path, 1).exists()


def test_documents_that_are_left_out_are_noted_at_once_and_as_they_double() -> None:
    noted: list[str] = []
    loader: Any = SimpleNamespace(left_out={"web": Counter()}, notes=["web: a kept unit is damaged"])
    report = LeftOutReport(loader, noted.append)
    for _ in range(9):
        report.report()
        loader.left_out["web"]["empty"] += 1
    assert noted == [
        "data: web: a kept unit is damaged",
        *(f"data: web: {n} document{'s' * (n > 1)} left out: {n} empty, so far" for n in (1, 2, 4, 8)),
    ]
