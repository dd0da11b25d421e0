"""Scaling: what stays the same, what grows, and where it ends."""

from __future__ import annotations

import contextlib
import io
import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.planner import sweep

SMALL = str(Path(__file__).parents[2] / "configs/recipes/gpt2-124m.yaml")


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[str]:
    file, printed = tmp_path_factory.mktemp("sweep") / "charts.svg", io.StringIO()
    given = ["train.global_batch_size=32", "--device", "h100", "--sweep", "--svg", str(file)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sweep, "MOST_DEVICES", 64)
        assert main(["plan", SMALL, *given]) == 0
    assert len(list(ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}g"))) == 2
    return printed.getvalue().splitlines()


def numbers(lines: list[str], title: str) -> list[tuple[int, float]]:
    """Devices and efficiency of each row of a table."""
    start = next(number for number, line in enumerate(lines) if line.startswith(title))
    rows = []
    for line in lines[start + 2 :]:
        if not line:
            break
        if line.startswith("   ") and "%" not in line:
            continue  # the rest of a layout
        rows.append((int(line.split()[0].replace(",", "")), float(line.split("%")[0].split()[-1]) / 100))
    return rows


def test_strong_scaling_ends_where_ranks_have_no_rows(lines):
    strong, weak = numbers(lines, "strong scaling: 32 rows"), numbers(lines, "weak scaling: 4 rows")
    assert [devices for devices, _ in strong][:3] == [8, 16, 32]
    assert [devices for devices, _ in weak] == [8, 16, 32, 64]
    assert strong[0][1] == weak[0][1] == 1.0
    assert all(later <= earlier for (_, earlier), (_, later) in itertools.pairwise(weak))
    assert strong[-1][1] < weak[2][1], "a batch that does not grow scales worse"


def test_memory_grows_with_the_micro_batch(lines):
    start = next(number for number, line in enumerate(lines) if line.startswith("memory of a process"))
    assert lines[start + 1].split() == ["micro-batch", "none", "selective", "full"]
    assert [line.split()[0] for line in lines[start + 2 : start + 5]] == ["1", "2", "4"]


def test_a_file_that_cannot_be_written_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "MOST_DEVICES", 8)
    file = tmp_path / "none" / "charts.svg"
    assert main(["plan", SMALL, "--device", "h100", "--sweep", "--svg", str(file)]) == 2
    assert str(file) in capsys.readouterr().err
