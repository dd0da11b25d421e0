"""What becomes of a job after each of its starts."""

from __future__ import annotations

import pytest

from llmkit.cluster.starts import MAX_INTERRUPTIONS, Ended, Record, judge
from llmkit.end_file import End

FAULT = End("fault", "rank 1 (n2, process 7) ended without reporting an error", hosts=("n2",))
STOPPED = End("stopped", "the batch script's stop file: time limit (SIGUSR1)", step=7, saved_step=7)


def ended(end=None, *, code=1, asked=False, newest=-1, lost=()):
    return Ended(end, code, asked, newest, lost)


def outcome(verdict):
    return verdict.action, verdict.code


def test_a_run_that_is_done_ends_the_job_whatever_the_launcher_says():
    assert outcome(judge(Record(), ended(End("done"), code=143))) == ("end", 0)


def test_a_mistake_ends_the_job_at_once_and_uses_no_start_up():
    record = Record()
    verdict = judge(record, ended(End("mistake", "my.yaml:3: no\nsuch setting")))
    assert outcome(verdict) == ("end", 2) and "my.yaml:3: no such setting" in verdict.why
    assert record.fruitless == []


def test_a_stop_that_the_script_asked_for_goes_on_and_that_of_a_user_does_not():
    asked = judge(Record(), ended(STOPPED, code=0, asked=True, newest=7))
    assert outcome(asked) == ("requeue", 75) and "time limit (SIGUSR1); saved until step 7" in asked.why
    own = judge(Record(), ended(End("stopped", "the stop file runs/x/STOP"), code=0, newest=7))
    assert outcome(own) == ("end", 75) and "stopped by the stop file runs/x/STOP, and saved" in own.why


def test_a_launcher_that_has_gone_is_a_fault_though_the_run_has_saved():
    verdict = judge(Record(), ended(End("stopped", "its launcher has ended"), code=137, newest=9))
    assert outcome(verdict) == ("requeue", 75) and verdict.why.startswith("fault: its launcher")


def test_the_third_fault_in_a_row_without_a_new_checkpoint_ends_the_job():
    record = Record(newest=5)
    for count in (1, 2):
        verdict = judge(record, ended(FAULT, newest=5))
        assert outcome(verdict) == ("requeue", 75)
        assert f"start {count} in a row without a new checkpoint, of at most 3" in verdict.why
    verdict = judge(record, ended(code=9, newest=5))
    assert outcome(verdict) == ("end", 9)
    assert verdict.why.startswith("3 starts in a row saved nothing new (none after that of step 5)")
    assert "without saying why (exit code 9)" in verdict.why


def test_a_new_checkpoint_begins_the_count_anew():
    record = Record()
    for newest in (-1, 10, 10, 20, 20, 20):
        assert judge(record, ended(FAULT, newest=newest)).action == "requeue"
    assert judge(record, ended(FAULT, newest=20)).action == "end"


def test_stops_without_a_new_checkpoint_end_the_job_too_and_what_to_do_is_said():
    record = Record()
    stopped = End("stopped", "the batch script's stop file: time limit (SIGUSR1)")
    verdicts = [judge(record, ended(stopped, code=0, asked=True)) for _ in range(3)]
    assert [outcome(verdict) for verdict in verdicts] == [("requeue", 75), ("requeue", 75), ("end", 1)]
    assert "no checkpoint at all" in verdicts[-1].why and "longer --time" in verdicts[-1].why
    assert verdicts[-1].why.count("time limit (SIGUSR1)") == 1


@pytest.mark.parametrize(("code", "given"), [(2, 1), (75, 1), (0, 1), (137, 137), (-9, 1)])
def test_a_job_that_gives_up_ends_with_a_code_of_a_fault(code, given):
    assert judge(Record(), ended(code=code), max_starts=1).code == given


def test_a_node_that_died_is_no_fault_of_the_run():
    record = Record()
    for _ in range(5):
        record.begin(-1, {"n2": "then"})
        verdict = judge(record, ended(FAULT, lost=["n2"]))
        assert outcome(verdict) == ("requeue", 75) and "died in this start: n2" in verdict.why
    assert record.fruitless == []


def test_a_job_that_is_interrupted_again_and_again_before_it_saves_is_held():
    record = Record()
    waits = [record.begin(-1, {}) for _ in range(MAX_INTERRUPTIONS + 1)]  # nothing says how they ended
    assert waits[:-1] == [""] * MAX_INTERRUPTIONS
    assert waits[-1].startswith("10 starts in a row were ended by SLURM")
    assert record.begin(-1, {}) == ""  # released


def test_a_job_that_saves_between_its_interruptions_goes_on_for_ever():
    record = Record()
    assert [record.begin(start // 2, {}) for start in range(50)] == [""] * 50


def test_a_record_is_kept_from_start_to_start(tmp_path):
    record = Record(7, ["fault: x"], 2, False, {"n1": "2026-11-29T20:00:00"})
    record.write(tmp_path / "record")
    assert Record.read(tmp_path / "record") == record
    for damaged in (b"", b"[]", b'{"other": 1}'):
        (tmp_path / "record").write_bytes(damaged)
        assert Record.read(tmp_path / "record") == Record()
    assert Record.read(tmp_path / "missing") == Record()
