"""What a stack says of a thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.watchdog.stacks import DEVICE, Frame, Stack, parse

TORCH = "/x/lib/python3.11/site-packages/torch"


def test_a_dump_is_read(tmp_path: Path) -> None:
    """Of a process of its own: of one with many threads faulthandler shows a hundred."""
    script = tmp_path / "hang.py"
    script.write_text(
        "import faulthandler, sys\ndef hang():\n    faulthandler.dump_traceback(sys.stdout)\nhang()\n"
    )
    dump = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    (own,) = parse(dump).values()
    assert [frame.function for frame in own.frames] == ["hang", "<module>"]
    assert own.place.startswith("hang (") and own.place.split(", ")[0].endswith("hang.py:3)")
    assert not own.compiles and not own.debugged


def test_a_place_names_the_call_and_who_made_it():
    frames = (
        Frame(f"{TORCH}/distributed/distributed_c10d.py", 2501, "all_reduce"),
        Frame("/home/me/llmkit/llmkit/loop/control.py", 70, "largest"),
    )
    assert Stack(frames).place == (
        "all_reduce (torch/distributed/distributed_c10d.py:2501), "
        "called by largest (llmkit/loop/control.py:70)"
    )


@pytest.mark.parametrize(
    ("frames", "exchange"),
    [
        ([(f"{TORCH}/distributed/distributed_c10d.py", "all_reduce"),
          (f"{TORCH}/distributed/c10d_logger.py", "wrapper"), ("/x/user.py", "step")], "all_reduce"),
        ([("/x/user.py", "step")], ""),
        ([(f"{TORCH}/autograd/graph.py", "_engine_run_backward")], DEVICE),
        ([], ""),
    ],
)  # fmt: skip
def test_the_exchange_that_a_stack_waits_in(frames, exchange):
    assert Stack(tuple(Frame(file, 1, function) for file, function in frames)).exchange == exchange


@pytest.mark.parametrize(
    ("line", "exchange"),
    [
        ("        work.wait()", "wait"),
        ("    values = found.tolist()", DEVICE),
        ("    dist.all_gather_into_tensor(a, b)", "all_gather_into_tensor"),
        ("    time.sleep(600)", ""),
        ("    return awaited(3)", ""),
    ],
)
def test_calls_into_c_are_told_by_their_line(tmp_path, line, exchange):
    file = tmp_path / "user.py"
    file.write_text(f"def step():\n{line}\n")
    assert Stack((Frame(str(file), 2, "step"),)).exchange == exchange


def test_a_compiler_and_a_debugger_are_seen():
    assert Stack((Frame("/x/torch/_inductor/scheduler.py", 1, "run"),)).compiles
    typing = Frame("/x/input.py", 1, "read"), Frame("/usr/lib/python3.11/pdb.py", 1, "cmdloop")
    assert Stack(typing).debugged


def test_what_is_no_dump_gives_no_stacks():
    assert parse("") == {}
    assert parse("Fatal\x00\nThread nonsense\n  File nowhere") == {}
    assert Stack().place == "unknown"


def test_the_places_of_llmkit_are_below_its_package():
    frame = Frame(str(Path("/a/llmkit/llmkit/engine/reduce.py")), 128, "finish")
    assert frame.place == "finish (llmkit/engine/reduce.py:128)"
