from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.data.building.pool import make_parts
from llmkit.errors import RunFault, UserError
from tests.data.building.makers import Maker


@pytest.mark.parametrize("workers", [0, 3])
def test_all_parts_are_made_and_come_in_order(tmp_path: Path, workers: int) -> None:
    told: list[int] = []
    parts = [4, 1, 2, 7, 9, 3]
    assert list(make_parts(Maker(tmp_path, {}), parts, workers, told.append)) == parts
    assert sorted(told) == sorted(parts)
    makers = {int((tmp_path / str(part)).read_text()) for part in parts}
    assert (makers == {os.getpid()}) == (workers == 0)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("user", UserError, "part 3 is the user's mistake"),
        ("run", RunFault, "part 3 cannot be read"),
        ("disk", OSError, "No space left on device"),
        ("bug", RuntimeError, "(?s)part 3 of a source:.*Traceback.*ZeroDivisionError: part 3"),
        ("killed", RunFault, r"a process that tokenizes ended with exit code -9 .*fewer --workers"),
    ],
)
def test_an_error_of_a_worker_is_raised_in_its_parent(
    tmp_path: Path, fault: str, error: type[Exception], message: str
) -> None:
    made = make_parts(Maker(tmp_path, {3: fault}), range(8), 1)
    with pytest.raises(error, match=message):
        list(made)


def test_the_first_error_in_order_is_raised_and_what_lies_before_it_comes(tmp_path: Path) -> None:
    made = make_parts(Maker(tmp_path, {2: "user", 3: "run"}), range(4), 2)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(UserError, match="part 2"):
        next(made)


def test_a_worker_that_cannot_start_is_no_end_of_waiting(tmp_path: Path) -> None:
    script = (  # without a guard: a spawned process runs it, too, and dies
        "import sys; from pathlib import Path; from tests.data.building.makers import Maker\n"
        "from llmkit.data.building.pool import make_parts\n"
        "faults = dict.fromkeys(range(100, 50000), 'much to hand over')\n"
        "list(make_parts(Maker(Path(sys.argv[1]), faults), range(3), 2))\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "a process that tokenizes ended with exit code 1 (it may have said why above)" in done.stderr


def test_nothing_to_make_starts_nobody(tmp_path: Path) -> None:
    assert list(make_parts(Maker(tmp_path, {}), [], 4)) == []
