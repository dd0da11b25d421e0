"""Requests to stop a run, and what they are called."""

from __future__ import annotations

import pytest

from llmkit.loop.stop import BATCH_FILE, HOOK, REASONS, STOP_FILE, TIME_OVER, StopRequest
from llmkit.run_folder import RunFolder
from llmkit.stopping import LAUNCHER_GONE, SIGNALS, Listener


@pytest.fixture
def request_(tmp_path):
    """A request in a folder that has a second stop file, and what it has said."""
    said: list[str] = []
    with RunFolder.open(tmp_path / "run", "train", stop_file=tmp_path / "asked") as folder:
        yield StopRequest(Listener({}), folder, said.append), tmp_path, said


def test_every_reason_to_stop_has_a_number_and_none_is_0():
    names = {number.name for number in SIGNALS}
    assert REASONS[0] == ""
    assert set(REASONS[1:]) == names | {HOOK, STOP_FILE, BATCH_FILE, TIME_OVER, LAUNCHER_GONE}


def test_the_stop_file_is_named_and_told_once(request_):
    stop, folder, said = request_
    assert (stop.code(), said) == (0, [])
    (folder / "run" / "STOP").touch()
    code = stop.code()
    assert stop.code() == code == REASONS.index(STOP_FILE)
    name = f"the stop file {folder / 'run' / 'STOP'}"
    assert said == [f"asked to stop ({name}): finishing this step, then saving"]
    assert stop.describe(code) == name


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"time limit\nmore", "the batch script's stop file: time limit"),
        (b"", "the batch script's stop file"),
        (b"\x1b[2Jred\xff\n", "the batch script's stop file: [2Jred\N{REPLACEMENT CHARACTER}"),
        (b"x" * 5000, f"the batch script's stop file: {'x' * 200}"),
    ],
)
def test_the_batch_script_may_say_why(request_, written, told):
    stop, folder, _ = request_
    (folder / "asked").write_bytes(written)
    assert stop.describe(stop.code()) == told


def test_the_end_of_the_time_is_a_reason(request_):
    stop, _, said = request_
    stop.time_over = lambda: True
    assert REASONS[stop.code()] == TIME_OVER
    assert "train.max_minutes" in said[0]


def test_a_hook_gives_its_reason(request_):
    stop, _, said = request_
    stop.hook = "the hook Watch: the loss has settled"
    assert REASONS[stop.code()] == HOOK
    assert stop.describe(stop.code()) == "the hook Watch: the loss has settled"
    assert "asked to stop (the hook Watch: the loss has settled)" in said[0]
