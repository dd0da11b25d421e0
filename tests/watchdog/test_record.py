"""What a verdict leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from llmkit.end_file import End, read_end
from llmkit.watchdog import record as records
from llmkit.watchdog.board import Sight
from llmkit.watchdog.diagnosis import Known, Verdict
from llmkit.watchdog.record import end, in_time, record, save_stack, stacks_folder

VERDICT = Verdict("hung_rank", (1,), "rank 1 hangs", 13.04)
RANKS = [Known(0, "n0", 100, "step", 7), Known(1, "n1", 101, "step", 6)]


def test_the_event_tells_rank_host_phase_seconds_and_stacks(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n')
    record(tmp_path, 3, VERDICT, RANKS, stacks_folder(tmp_path, 3))
    _, line = (tmp_path / "events.jsonl").read_text().splitlines()
    row = json.loads(line)
    del row["time"]
    assert row == {
        "event": "hung_rank", "reason": "rank 1 hangs", "rank": 1, "ranks": [1], "host": "n1", "step": 6,
        "phase": "step", "seconds": 13.0, "stacks": "logs/stacks-3",
    }  # fmt: skip


def test_a_start_that_has_lost_the_run_writes_nothing(tmp_path):
    (tmp_path / "generations" / "00000004").mkdir(parents=True)
    record(tmp_path, 3, VERDICT, RANKS, None)
    assert not (tmp_path / "events.jsonl").exists()


def test_stacks_are_saved_a_file_a_rank(tmp_path):
    save_stack(stacks_folder(tmp_path, 3), 12, "Thread 0x1")
    assert (tmp_path / "logs/stacks-3/rank-00012.txt").read_text() == "Thread 0x1"
    save_stack(tmp_path / "events.jsonl" / "x", 1, "no folder can be here")


def test_the_end_file_names_steps_and_hosts_and_the_first_end_stays(tmp_path):
    file = tmp_path / "end.json"
    end(str(file), VERDICT, Sight(step=7, first_step=0, saved_step=-1), ["n1"])
    wanted = End("fault", "rank 1 hangs", 7, None, 0, ("n1",))
    assert read_end(file) == wanted
    end(str(file), VERDICT._replace(text="later"), Sight(), [])
    assert read_end(file) == wanted
    end(str(tmp_path / "none" / "end.json"), VERDICT, Sight(), [])


def test_a_disk_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(records, "SECONDS", 0.05)
    forever = threading.Event()
    assert not in_time(lambda: forever.wait() and None)
    assert in_time(lambda: None)
    forever.set()


def test_a_screen_that_nobody_reads_is_not_waited_for():
    root = str(Path(records.__file__).parents[2])
    code = f"import sys; sys.path[:0] = [{root!r}]; from llmkit.watchdog.record import say\n"
    code += "[say('x' * 500) for _ in range(1000)]; print('done')"
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", code], stderr=writer, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read() == b"done\n"
    os.close(writer)
    os.close(reader)
