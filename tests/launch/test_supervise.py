"""launch/supervise.sh, which makes SIGTERM a request to stop, and of a run's end an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.limits import HANG

SCRIPT = Path(__file__).parents[2] / "launch" / "supervise.sh"


def supervise(folder: Path | None, command: str) -> subprocess.Popen[str]:
    """The script with a shell in the place of a launcher."""
    shared = {"SUPERVISE_DIR": str(folder)} if folder else {}
    return subprocess.Popen(
        [SCRIPT, "bash", "-c", command], env={**os.environ, **shared}, text=True, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("end", "launcher", "code"),
    [("done", 0, 0), ("stopped", 0, 75), ("stopped", 1, 75), ("mistake", 1, 2), ("fault", 1, 1), ("", 9, 9)],
)
def test_the_exit_code_is_that_of_the_run_and_not_that_of_its_launcher(tmp_path, end, launcher, code):
    written = json.dumps({"end": end, "reason": "", "hosts": []})
    write = f"echo '{written}' >$END_FILE" if end else ":"
    assert supervise(None, f"{write}; exit {launcher}").wait(HANG) == code


def test_the_end_of_an_earlier_start_is_not_taken_for_that_of_this_one(tmp_path):
    assert supervise(tmp_path, """echo '{"end": "stopped"}' >$END_FILE""").wait(HANG) == 75
    assert supervise(tmp_path, "exit 9").wait(HANG) == 9
    assert (tmp_path / "end").exists()  # other machines may still have to read it
    hour_ago = (tmp_path / "end").stat().st_mtime - 3600
    os.utime(tmp_path / "end", (hour_ago, hour_ago))
    assert supervise(tmp_path, "exit 9").wait(HANG) == 9
    assert not (tmp_path / "end").exists()


def test_arguments_reach_the_launcher_as_they_are():
    given = ["a b", "$(touch x)", "'", "*"]
    done = subprocess.run([SCRIPT, "printf", "%s\\n", *given], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == given
    assert subprocess.run([SCRIPT], capture_output=True, timeout=HANG).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_asks_until_the_run_ends_and_does_not_reach_the_launcher(tmp_path, number):
    """As a run does that is just starting, the first request is removed; another follows."""
    heard = "while [ ! -e $STOP_FILE ]; do sleep 0.05; done; cat $STOP_FILE; rm $STOP_FILE"
    process = supervise(tmp_path, f"echo ready; {heard}; {heard}; echo '{{\"end\": \"stopped\"}}' >$END_FILE")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    told, _ = process.communicate(timeout=HANG)
    assert process.returncode == 75
    assert [line.split()[0] for line in told.splitlines()] == [number.name, number.name]
