"""Starts that are refused, fail, or are stopped while a run is set up or compiles: nothing is lost."""

from __future__ import annotations

import json
import signal
import time

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.data.building import build_source, cached_tokenizer, parts
from llmkit.model.initial import InitialWeights
from tests.limits import HANG
from tests.program import at_step, end, once, recorded, timeless, train

BPE = "data.tokenizer={type: bpe, vocab_size: 300}"


PHASES = {
    "data": lambda patch: once(patch, parts.PartMaker, "make", end),
    "tokenizer": lambda patch: once(patch, cached_tokenizer, "text_of", end),
    "weights": lambda patch: once(patch, InitialWeights, "read", end, call=3),
    "first step": lambda patch: at_step(patch, 1, end),
    "Ctrl-C": lambda patch: once(patch, build_source, "write_shards", lambda: end(signal.SIGINT)),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_before_the_first_step_is_over_ends_the_start_at_once(project, monkeypatch, phase, capsys):
    folder = project / "runs" / "tiny"
    with monkeypatch.context() as patch:
        PHASES[phase](patch)
        assert train(BPE) == 75
    name = "SIGINT" if phase == "Ctrl-C" else "SIGTERM"
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["reason"]) == ("stop", name)
    assert f"stopped by {name} before the first step of this start" in capsys.readouterr().out
    assert not list((folder / "checkpoints").iterdir())
    assert not (folder / "DONE").exists()
    assert train(BPE, "train.max_steps=2") == 0


def test_what_was_built_before_the_stop_is_not_built_again(project, monkeypatch, capsys):
    monkeypatch.setattr(parts, "PART_BYTES", (2000, 2000))
    with monkeypatch.context() as patch:
        once(patch, parts.PartMaker, "make", end, call=4)
        assert train() == 75
    capsys.readouterr()
    assert train("train.max_steps=1") == 0
    assert "3 of 4 parts are there from before" in capsys.readouterr().out


def test_a_resumed_run_that_is_stopped_before_its_first_step_stays_as_it_is(project, monkeypatch):
    assert train("run.name=straight") == 0
    for step in (5, 1):
        with monkeypatch.context() as patch:
            at_step(patch, step, end)
            assert train() == 75
    folder = project / "runs" / "tiny"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000005"]
    assert train() == 0
    assert timeless(folder) == timeless(project / "runs" / "straight")


@pytest.mark.parametrize("where", ["run folder", "STOP_FILE"])
def test_a_stop_file_is_heeded_while_a_run_is_set_up(project, monkeypatch, where, capsys):
    folder = project / "runs" / "tiny"
    stop, saved = folder / "STOP" if where == "run folder" else project / "asked", project / "saved"
    monkeypatch.setenv("STOP_FILE", str(project / "asked"))
    monkeypatch.setenv("SAVED_FILE", str(saved))
    monkeypatch.setattr("llmkit.stopping.WATCH_SECONDS", 0.01)

    def wait() -> None:
        stop.write_text("time limit\n")
        time.sleep(HANG)

    once(monkeypatch, parts.PartMaker, "make", wait)
    assert train() == 75
    told = f"the stop file {stop}" if where == "run folder" else "the batch script's stop file: time limit"
    assert told.replace(str(project) + "/", "") in capsys.readouterr().out
    assert saved.exists()  # nothing is lost: no fault for the batch script


@pytest.mark.parametrize(
    ("override", "says"),
    [("model.intermediate_size=128", "64 -> 128"), ("data.sources.0.path=nowhere", "nowhere")],
)
def test_a_start_that_is_refused_says_so_in_the_record(finished, override, says, capsys):
    assert train("train.max_steps=13", override) == 2
    (event,) = recorded("refused")
    assert says in event["reason"]
    assert open_checkpoint(finished / "runs" / "tiny").step == 12


def test_a_start_that_fails_says_so_in_the_record(finished, monkeypatch):
    def fail(*arguments, **settings):
        raise MemoryError("no room for the engine")

    monkeypatch.setattr("llmkit.loop.build.build_engine", fail)
    with pytest.raises(MemoryError):
        train("train.max_steps=13")
    assert recorded("fault")[0]["reason"] == "MemoryError: no room for the engine"
