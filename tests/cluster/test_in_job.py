"""What the batch script asks, as it asks it; SLURM's part is played by functions."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path

import pytest

from llmkit import ports
from llmkit.cluster import nodes
from llmkit.cluster.in_job import HOLD, free_port, main, newest_checkpoint
from llmkit.end_file import END_FILE, End, write_end


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The folder of a job, and that which it was submitted from."""
    monkeypatch.chdir(tmp_path)
    known = {"SLURM_JOB_ID": "7", "JOB": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MAX_STARTS", raising=False)
    monkeypatch.setattr(nodes, "services", lambda names: {"n1": "then", "n2": "then"})
    (tmp_path / "state").mkdir()
    return tmp_path


@pytest.fixture
def left_out(monkeypatch):
    """Where nodes can be left out: the file that names them."""
    monkeypatch.setattr(nodes, "exclusion", lambda number, hosts, count: ",".join(hosts))
    return Path("state/exclude")


def save(project, step):
    folder = project / "runs" / "tiny" / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()


def start():
    return main(["state", "before", "runs/tiny"])


def end(capsys, *options, code=1):
    assert main(["state", "after", "--code", str(code), "--end-file", "end", *options]) == 0
    return capsys.readouterr().out.strip()


def test_the_life_of_a_job(job, capsys, left_out):
    assert start() == 0
    write_end(End("fault", "rank 1 has gone", hosts=("n2",)), {END_FILE: "end"})
    row = "start 1 in a row without a new checkpoint, of at most 3"
    assert end(capsys) == f"requeue 75 fault: rank 1 has gone; {row}"
    assert left_out.read_text() == "n2"

    assert start() == 0
    save(job, 40)
    (job / "end").unlink()
    write_end(End("stopped", "the batch script's stop file: time limit"), {END_FILE: "end"})
    assert end(capsys, "--asked", code=0).startswith("requeue 75 stopped: the batch script's stop file")
    assert json.loads((job / "state" / "starts.json").read_text())["newest"] == 40

    assert start() == 0
    (job / "end").unlink()
    (job / "runs" / "tiny" / "DONE").touch()
    assert end(capsys, code=137) == "end 0 done"  # killed after it was done


def test_a_job_is_held_after_many_interruptions(job, capsys):
    codes = [start() for _ in range(12)]  # nothing says how they ended
    assert codes == [0] * 10 + [HOLD, 0]
    assert "10 starts in a row were ended by SLURM" in capsys.readouterr().err


def test_a_disk_that_takes_no_record_is_named(job, capsys, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("llmkit.cluster.starts.write_json", full)
    assert main(["state", "before", "runs/tiny"]) == 1
    error = capsys.readouterr().err
    assert "before: [Errno 28] No space left on device: 'state/starts.json'" in error
    assert "submit the job again" in error and "Traceback" not in error


def test_nodes_that_are_not_fit_use_no_start_up(job, capsys, left_out):
    steps = itertools.count(1)
    for _ in range(12):
        for _ in range(3):
            assert start() == 0
            assert main(["state", "exclude", "n2"]) == 0
        assert "n2 left out of the next starts" in capsys.readouterr().err
        assert start() == 0  # of a broken environment all nodes are not fit
        assert main(["state", "exclude", "n2"]) == 1
        assert "n2 may be used again: nodes were left out 3 times in a row" in capsys.readouterr().err
        end(capsys, code=1)
        save(job, next(steps))


def test_a_node_that_cannot_be_left_out_is_named_with_the_reason(job, capsys, monkeypatch):
    def refuse(number, hosts, count):
        raise nodes.CannotLeaveOut("the job asks for n2 by name")

    monkeypatch.setattr(nodes, "exclusion", refuse)
    assert main(["state", "exclude", "n2", "n3"]) == 1
    assert "n2, n3 may be used again: the job asks for n2 by name" in capsys.readouterr().err


def test_the_newest_checkpoint_is_that_with_a_manifest(job):
    run = job / "runs" / "tiny"
    assert newest_checkpoint(run) == -1
    save(job, 0)
    assert newest_checkpoint(run) == 0
    save(job, 123)
    (run / "checkpoints" / "step-00000200").mkdir()  # being written, or what a crash has left
    (run / "checkpoints" / "step-x" / "manifest.json").mkdir(parents=True)
    assert newest_checkpoint(run) == 123


def test_a_port_that_is_taken_is_passed_over_and_each_start_has_another(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    first = free_port(123456, 0)
    assert main(["state", "port", "0"]) == 0 and capsys.readouterr().out == f"{first}\n"
    with socket.create_server(("", first)):
        assert free_port(123456, 0) > first
    assert free_port(123456, 1) != first
    monkeypatch.setattr(ports, "PORTS", range(first, first + 1))
    with socket.create_server(("", first)), pytest.raises(OSError, match="is free"):
        free_port(1, 0)
