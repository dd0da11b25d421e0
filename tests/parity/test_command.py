"""`llmkit doctor --parity`: what it starts, prints and returns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from llmkit.errors import RunFault, UserError
from llmkit.parity import command
from tests.limits import HANG
from tests.ranks import run_ranks


def test_processes_of_a_launcher_run_the_cases_for_as_many_and_the_first_prints():
    (code, printed), (other_code, nothing) = run_ranks(2, "tests.parity.command_cases:run", joined=False)
    lines = printed.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "modern native tp1 dp2 fp32",
        "modern native tp2 dp1 fp32",
    ]
    assert all("FAILED: weight (" in line and "allowed is 0.0e+00" in line for line in lines)
    assert (code, other_code, nothing) == (1, 0, "")


def test_another_number_of_processes_than_any_case_has_is_refused():
    place = {
        "WORLD_SIZE": "3",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    with pytest.raises(UserError, match="the cases are for 1, 2, 4, 8 processes; 3 were started"):
        command.parity_command(False, place)


PYTHON = sys.executable
FAKE = """\
#!{python}
import json, os, sys, time
rank = os.environ["RANK"]
with open({folder!r} + "/" + rank, "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
code = {codes}[int(rank)]
time.sleep(1000 if code is None else 0)
sys.exit(code)
"""


def launch(monkeypatch: pytest.MonkeyPatch, folder: Path, codes: list[int | None]) -> int:
    """`_launch` of stand-ins that end with these exit codes; None never ends."""
    fake = folder / "python"
    fake.write_text(FAKE.format(python=PYTHON, folder=str(folder), codes=codes))
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(command, "GRACE", 0.5 if None in codes else HANG)
    return command._launch(len(codes), True, {"PATH": "/nowhere"})


def test_a_process_alone_starts_the_others_by_itself(monkeypatch, tmp_path):
    assert launch(monkeypatch, tmp_path, [0, 0, 0]) == 0
    ports = set()
    for rank in range(3):
        arguments, environment = json.loads((tmp_path / str(rank)).read_text())
        assert arguments == ["-m", "llmkit", "doctor", "--parity", "--all"]
        assert environment["PATH"] == "/nowhere" and environment["WORLD_SIZE"] == "3"
        assert environment["RANK"] == environment["LOCAL_RANK"] == str(rank)
        ports.add(environment["MASTER_PORT"])
    assert len(ports) == 1


def test_differences_are_an_exit_code_and_a_process_that_breaks_off_is_a_fault(monkeypatch, tmp_path):
    assert launch(monkeypatch, tmp_path, [1, 0]) == 1
    with pytest.raises(RunFault, match=r"for 2 processes broke off \(exit codes \[0, 3\]\)"):
        launch(monkeypatch, tmp_path, [0, 3])
    with pytest.raises(RunFault, match=r"exit codes \[-9, 3\]"):
        launch(monkeypatch, tmp_path, [None, 3])
