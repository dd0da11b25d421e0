"""Each example is short, and has its test."""

from __future__ import annotations

from pathlib import Path

from tests.examples.project import EXAMPLES

LONGEST = 60


def test_examples_fit_on_a_screen_or_two():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) >= 7 and {name for name, length in lengths.items() if length > LONGEST} == set()


def test_examples_are_tested_and_explained():
    here = Path(__file__).parent
    page = "".join((EXAMPLES.parent / name).read_text() for name in ("extending.md", "come-from.md"))
    for path in EXAMPLES.glob("*.py"):
        assert f"(examples/{path.name})" in page
        if path.stem != "accelerate_loop":  # which tests/launch runs
            assert (here / f"test_{path.name}").exists()
