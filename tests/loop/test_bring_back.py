"""Runs that go on from a copy on an empty disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.load import load
from llmkit.copies import copier, owner
from llmkit.copies.place import url_of
from llmkit.copies.store import Store
from tests.copies.stores import PutServer, copied_steps
from tests.program import at_step, losses, recorded, rows, train


def test_an_empty_disk_goes_on_where_the_run_was(
    copying_project: Path,
    put_server: PutServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The losses are those of a run that nothing has happened to, and the record is one."""
    copy_to = f"checkpoint.copy_to={put_server.url}"
    assert train(copy_to) == 0
    straight = losses("tiny")
    shutil.rmtree("runs")
    put_server.files.clear()

    def stop() -> None:
        Path("runs/tiny/STOP").touch()

    at_step(monkeypatch, 7, stop)
    assert train(copy_to) == 75
    assert copied_steps(f"{put_server.url}/tiny")[-1] == 7
    started = recorded("start")
    shutil.move("runs", "lost")
    assert train(copy_to) == 0
    assert losses("tiny") == straight
    assert [row["step"] for row in recorded("fetched")] == [7]
    assert recorded("start") == started and [row["step"] for row in recorded("resume")] == [7]
    assert Path("runs/tiny/configs/start-0001.yaml").exists()
    assert [path.name for path in sorted(Path("runs/tiny/checkpoints").iterdir())] == [
        "step-00000007", "step-00000010", "step-00000012"
    ]  # fmt: skip
    assert copied_steps(f"{put_server.url}/tiny")[-1] == 12
    found = owner.read(Store(f"{put_server.url}/tiny"))
    assert found is not None and found.start == 2
    refused_where_others_go_on(put_server, copy_to)


def refused_where_others_go_on(put_server: PutServer, copy_to: str) -> None:
    """The folder from before knows less than the copies; another run has no business there."""
    shutil.move("runs", "newer")
    shutil.move("lost", "runs")
    assert train(copy_to, "train.max_steps=14") == 2
    shutil.rmtree("runs/tiny/copies")
    assert train(copy_to, "train.max_steps=14") == 2
    assert copied_steps(f"{put_server.url}/tiny")[-1] == 12


def test_a_start_that_could_not_fetch_the_record_is_repeated_as_a_whole(
    copying_project: Path,
    put_server: PutServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A checkpoint without the record would go on as a run that has none."""
    copy_to = f"checkpoint.copy_to={put_server.url}"
    assert train(copy_to, "train.max_steps=6") == 0
    before, started = rows(Path("runs/tiny")), recorded("start")
    shutil.rmtree("runs")
    (path,) = (path for path in put_server.files if path.endswith("/metrics.jsonl"))
    content = put_server.files.pop(path)
    assert train(copy_to, "train.max_steps=6") == 1
    assert "the record of the run cannot be fetched" in capsys.readouterr().err
    put_server.files[path] = content
    assert train(copy_to, "train.max_steps=6") == 0
    assert rows(Path("runs/tiny")) == before and recorded("start") == started


def test_damaged_copies_are_passed_over(
    copying_project: Path,
    put_server: PutServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy_to = f"checkpoint.copy_to={put_server.url}"
    few = "checkpoint.keep_last=2"  # whether step 5 is copied depends on which process is faster
    assert train(copy_to, few, "train.max_steps=10") == train(copy_to, few) == 0
    shutil.rmtree("runs")
    (path,) = (path for path in put_server.files if "step-00000012/pieces" in path)
    put_server.files[path] = bytes(100) + put_server.files[path][100:]
    assert train(copy_to, few) == 0
    assert [row["step"] for row in recorded("fetched")] == [10]
    assert "the copy of step-00000012 at" in capsys.readouterr().out
    assert len(losses("tiny")) == 12
    assert not list(Path("runs/tiny/checkpoints").glob(".*"))
    shutil.rmtree("runs")
    for path in put_server.files:
        if "/pieces" in path:
            put_server.files[path] = bytes(100)
    assert train(copy_to, few) == 1
    assert "none of the 2 copies at" in capsys.readouterr().err


def test_a_store_that_does_not_answer(
    copying_project: Path,
    put_server: PutServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing begins anew where there may be copies; with checkpoints at hand the run goes on."""
    copy_to = f"checkpoint.copy_to={put_server.url}"
    put_server.trouble = lambda number, start, end: 403
    put_server.files["/tiny/owner.json"] = put_server.files["/tiny/copies.json"] = b"x"
    assert train(copy_to) == 1
    assert "cannot be asked whether it has copies of this run (HTTP 403" in capsys.readouterr().err
    assert not list(Path("runs/tiny/checkpoints").iterdir())
    assert train() == 0
    monkeypatch.setattr(copier, "END_SECONDS", 2.0)
    assert train(copy_to, "train.max_steps=13") == 0
    assert "does not say which copies it has (HTTP 403" in capsys.readouterr().out


def test_a_living_owner_keeps_the_run(
    copying_project: Path,
    put_server: PutServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy_to = f"checkpoint.copy_to={put_server.url}"
    assert train(copy_to) == 0
    store = Store(f"{put_server.url}/tiny")
    found = owner.read(store)
    assert found is not None
    me = owner.Owner.of_this_process("llmkit train tiny.yaml", {})
    owner.write(store, replace(found, owner=me, ended=False))
    shutil.copytree("runs", "copied")
    shutil.move("runs", "there")
    assert train(copy_to) == 2
    assert "which is alive, in another run folder" in capsys.readouterr().err
    shutil.rmtree("runs")
    shutil.move("copied", "runs")  # as `cp -r` of a run that is under way
    more = "train.max_steps=14"
    for command in (["train", "tiny.yaml", copy_to, more], ["checkpoint", "copy", "runs/tiny"]):
        assert main(command) == 2
        assert "which is alive, in another run folder" in capsys.readouterr().err
    owner.write(store, replace(found, owner=me, ended=True))
    assert train(copy_to, more) == 0
    assert copied_steps(f"{put_server.url}/tiny")[-1] == 14
    shutil.move("runs", "elsewhere")
    known = owner.Known.read(Path("elsewhere/tiny"))
    assert known is not None and not known.is_copy, "the copies are that folder's now, wherever it is moved"


def test_the_place_is_that_of_the_run(copying_project: Path) -> None:
    assert url_of(load("tiny.yaml", []).config) is None
    assert url_of(load("tiny.yaml", ["checkpoint.copy_to=s3://b/runs/"]).config) == "s3://b/runs/tiny"
