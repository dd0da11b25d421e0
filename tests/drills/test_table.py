"""The table of drills says what came of each, and which have no test."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.drills import __main__ as program
from tests.drills.catalogue import DRILLS, Drill
from tests.drills.table import Outcome, Row, markdown, measured, rows, summary

KILLED = Drill("D3", "killed in a save", "a checkpoint loads")
FLIPPED = Drill("D19", "a bit flipped", "found")


def test_one_failure_among_several_tests_is_a_failure():
    outcomes = [
        Outcome([KILLED], "passed", figures=[("points", 40, "")]),
        Outcome([KILLED], "failed", "test_x: no", figures=[("points", 52, "")]),
        Outcome([KILLED], "only with --all"),
    ]
    assert rows(outcomes, ["D3"]) == [
        Row("D3", "killed in a save", "a checkpoint loads", "points 40 to 52", "failed",
            "test_x: no; 1 of 3 tests did not run")
    ]  # fmt: skip


def test_what_does_not_run_and_what_has_no_test_are_rows_with_a_reason():
    outcomes = [Outcome([KILLED, FLIPPED], "cannot be run here", "no unshare(1)")]
    table = rows(outcomes, ["D3", "D4", "D19"])
    assert [(row.drill, row.result, row.reason) for row in table] == [
        ("D3", "cannot be run here", "no unshare(1)"),
        ("D4", "missing", "no test performs it"),
        ("D19", "cannot be run here", "no unshare(1)"),
    ]
    assert table[1].injection == DRILLS["D4"]
    assert summary(table) == "2 cannot be run here, 1 missing"


def test_every_drill_is_performed_by_a_test():
    files = set(Path(__file__).parents[1].rglob("test_*.py")) - {Path(__file__)}
    texts = [file.read_text() for file in files]
    marked = {number for text in texts for number in re.findall(r'drill\(\s*"(D\d+)"', text)}
    assert set(DRILLS) - marked == set()


def test_a_drill_that_is_performed_in_two_ways_has_two_rows():
    by_hand = Drill("D3", "killed by hand", "so")
    outcomes = [Outcome([KILLED], "passed"), Outcome([by_hand], "only with --all")]
    assert [row.result for row in rows(outcomes, ["D3"])] == ["passed", "only with --all"]


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ([("noticed after", 0.04123, "s")], "noticed after 0.0412 s"),
        ([("noticed after", 0.5, "s"), ("noticed after", 3.25, "s")], "noticed after 0.5 to 3.25 s"),
        ([("bad", 0, ""), ("bad", 0, ""), ("points", 1000, "")], "bad 0; points 1000"),
        ([("named", "rank 1", ""), ("named", "rank 0", "")], "named rank 1, rank 0"),
    ],
)
def test_figures_of_one_name_are_given_by_their_smallest_and_largest(figures, text):
    assert measured(figures) == text


def test_a_row_of_the_documentation_is_one_line():
    (_, _, line) = markdown([Row("D3", "a | b", "two\nlines", "", "failed", "why")]).splitlines()
    assert line == "| D3 | a \\| b | two lines |  | failed: why |"


TESTS = """\
import pytest

@pytest.mark.drill("D3", injection="killed", expected="loads")
@pytest.mark.parametrize("points", [7, 9])
def test_killed(points, measured):
    measured("points", points, "")

@pytest.mark.exhaustive
@pytest.mark.drill("D4", injection="killed often", expected="loads")
def test_often(): ...

@pytest.mark.drill("D5", injection="cut off", expected="loads")
def test_cut_off():
    pytest.skip("there is no power here")

@pytest.mark.drill("D16", injection="full", expected="goes on")
def test_full():
    assert 1 == 2

@pytest.fixture
def broken():
    raise OSError("no room")

@pytest.mark.drill("D17", injection="gone", expected="goes on")
def test_gone(broken): ...

def test_of_something_else(): ...
"""


@pytest.fixture
def drills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tests that `python -m tests.drills` takes for its own."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import measured\n")
    options = "-m 'not exhaustive' -p no:cacheprovider --import-mode=importlib"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\naddopts = {options}\nmarkers =\n  exhaustive\n  drill\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "TESTS", tmp_path)
    return tmp_path


def test_the_program_runs_what_is_marked_and_writes_the_table(drills: Path, capsys):
    assert (
        program.main(["--only", "D3,D4,D5,D6,D16,D17", "--markdown", "page.md", "--json", "table.json"]) == 1
    )
    table = json.loads((drills / "table.json").read_text())
    assert [(row["drill"], row["measured"], row["result"]) for row in table] == [
        ("D3", "points 7 to 9", "passed"),
        ("D4", "", "only with --all"),
        ("D5", "", "cannot be run here"),
        ("D6", "", "missing"),
        ("D16", "", "failed"),
        ("D17", "", "failed"),
    ]
    assert table[2]["reason"] == "there is no power here"
    assert "assert 1 == 2" in table[4]["reason"] and "no room" in table[5]["reason"]
    page = (drills / "page.md").read_text()
    assert "2 failed, 1 passed" in page and "| D3 | killed | loads | points 7 to 9 | passed |" in page
    assert "D17" in capsys.readouterr().out


def test_every_figure_is_measured():
    """A number that is written into a test says nothing about the run."""
    written = []
    for path in sorted(program.TESTS.rglob("test_*.py")):
        if "mark.drill(" in (text := path.read_text()):
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            written += [
                f"{path.relative_to(program.TESTS)}:{call.lineno}"
                for call in calls
                if ast.unparse(call.func) == "measured" and len(call.args) == 3
                and isinstance(call.args[1], ast.Constant)
            ]  # fmt: skip
    assert written == []
