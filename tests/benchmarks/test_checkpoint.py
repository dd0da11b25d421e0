"""The benchmark of checkpoints: its table, and a toy that is saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoint import Turn, lines, main


def test_the_table_has_medians_of_all_rounds_but_the_first() -> None:
    turns = [Turn(*[value] * 6, bytes=10**9) for value in (9.0, 1.0, 3.0, 2.0)]
    assert lines({"llmkit": turns}, 1.0)[-1] == (
        "| llmkit | 9.000 | 2.000 | 2.000 | 2.00 | 2.00 | 2.00 | 2.00 | 1.000 |"
    )


def test_a_toy_is_saved_and_loaded_by_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--sizes", "0.012", "--rounds", "1", "--steps", "0", "--threads", "1", "--out", str(tmp_path)]
    main([*asked, "--contenders", "llmkit", "llmkit, background", "torch.save", "DCP"])
    (page,) = tmp_path.iterdir()
    text = page.read_text()
    assert text.startswith("# Checkpoints, ") and "## 0.012 GB of state" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["llmkit", "llmkit, background", "torch.save", "DCP"]
    for row in rows:
        *seconds, gigabytes = map(float, row[1:])
        assert len(seconds) == 7 and gigabytes == 0.013 and min(seconds) >= 0
