"""What a start shows of the run that lies ahead."""

from __future__ import annotations

import io
import os
import pty
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from llmkit.config.monitor_section import Monitor
from llmkit.config.schema import Config
from llmkit.loop import start_plan as module
from llmkit.loop.phases import Phases
from llmkit.loop.start_plan import start_plan
from llmkit.loop.state import TrainState
from llmkit.monitor import background, console
from tests.limits import HANG
from tests.monitor.screen import Screen
from tests.program import at_step, make_project, train


def facts(printed: str) -> dict[str, str]:
    """The lines of a start by name, each with what follows it."""
    found, name = dict[str, str](), ""
    for line in printed.splitlines():
        if line[:9].strip() and line[9:11] == "  ":
            name = line[:9].strip()
            found[name] = line[11:]
        elif line.startswith(" " * 11) and name:
            found[name] += " " + line.strip()
    return found


def test_a_newcomer_sees_what_will_be_done_and_the_same_on_a_resume_with_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    at_step(monkeypatch, 6, lambda: signal.raise_signal(signal.SIGTERM))
    assert train("evaluate.every_steps=4") == 75
    printed = capsys.readouterr().out
    found = facts(printed)
    assert list(found) == [
        "model", "layout", "step", "memory", "kernels", "run", "device", "peak", "forecast", "data",
        "length", "saves", "evaluates", "metrics",
    ]  # fmt: skip
    assert found["run"] == "runs/tiny, new"
    assert found["device"].startswith("the CPU (") and found["device"].endswith("), fp32")
    assert found["peak"].startswith("measured fp32 matrix rate of this CPU")
    assert found["data"] == "text-0: 11,727 tokens, 0.131 epochs to come"
    assert found["length"].startswith("12 steps, 1.5k tokens (")
    assert found["evaluates"] == "every 4 steps and at the end, on 598 bytes of text"
    assert found["metrics"] == "every step, to metrics.jsonl"
    before = printed.split("step  1/12")[0].splitlines()
    assert len([line for line in before if not line.startswith("data: ")]) <= 20
    assert train("evaluate.every_steps=4") == 0
    found = facts(capsys.readouterr().out)
    assert found["run"].startswith("runs/tiny, goes on after step ")
    assert " steps are left, about " in found["length"]


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Our end of a terminal, and that of a run, in the folder of a project."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(console, "REFRESH_SECONDS", 0.01)
    return pty.openpty()


def test_on_a_terminal_the_view_is_below_what_stays_and_goes_at_the_end(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = terminal
    received = list[bytes]()

    def receive() -> None:
        with suppress(OSError):  # nobody has the other end any more
            while text := os.read(ours, 65536):
                received.append(text)

    reader = threading.Thread(target=receive)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        assert train("evaluate.every_steps=6", "monitor.log_every=2") == 0
    reader.join(HANG)
    os.close(ours)
    text = b"".join(received).decode()
    assert "━" in text and "held-out" in text
    lines = Screen(80).feed(text).lines
    assert not any("━" in line for line in lines)
    assert [line[:22] for line in lines if line.startswith("step ")] == [
        "step       4 sequences", "step  6/12  held-out l", "step 12/12  held-out l",
    ]  # fmt: skip
    assert lines[-2].startswith("or the same command with")


def test_a_terminal_that_takes_nothing_is_not_waited_for(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = terminal
    monkeypatch.setattr(background, "DRAIN_SECONDS", 0.2)
    os.set_blocking(theirs, False)
    with suppress(BlockingIOError):
        while True:
            os.write(theirs, b"x" * 1024)
    os.set_blocking(theirs, True)
    waited = threading.Event()
    guard = threading.Timer(HANG, lambda: (waited.set(), os.close(ours)))
    guard.start()
    unbuffered = io.TextIOWrapper(open(theirs, "wb", buffering=0), "utf-8", write_through=True)  # noqa: SIM115
    with unbuffered as stream, monkeypatch.context() as patch:  # as PYTHONUNBUFFERED makes it
        patch.setattr("sys.stdout", stream)
        assert train("evaluate.every_steps=2", "train.max_steps=6") == 0
        guard.cancel()
        assert not waited.is_set()
        os.close(ours)  # so that the thread that writes ends, too
    assert Path("runs/tiny/DONE").exists()
    assert "standard output takes nothing" in Path("runs/tiny/logs/rank-00000.log").read_text()


def test_quiet_says_where_the_log_is_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert train("train.max_steps=2", "--quiet") == 0
    log, end = capsys.readouterr().out.splitlines()
    assert log == "log: runs/tiny/logs/rank-00000.log"
    assert end.startswith("steps 2, 256 tokens; held-out loss ") and "; run folder runs/tiny" in end
    kept = Path("runs/tiny/logs/rank-00000.log").read_text()
    assert "run        runs/tiny, new" in kept and "step 2/2  loss" in kept
    assert train("train.max_steps=x", "--quiet") == 2
    assert "train.max_steps" in capsys.readouterr().err


def trainer(max_steps: int | None, rows: list[int], *, sources: int = 2, step: int = 0) -> Any:
    """What `start_plan` reads of a trainer. rows: to come, of each source."""
    stored = SimpleNamespace(tokens=3200)
    made = [SimpleNamespace(name=f"s{k}", stored=stored if k else None) for k in range(sources)]
    config = {"data": {"sources": [{"type": "stdlib"}]}, "train": {"max_minutes": 5.0}}
    return SimpleNamespace(
        state=TrainState(step=step, max_steps=max_steps),
        loader=SimpleNamespace(rows_to_come=lambda steps: list(np.array(rows) * steps)),
        data=SimpleNamespace(sources=made, sequence_length=32, has_pairs=False, heldout_targets=0),
        plan=SimpleNamespace(tokens_per_step=128, num_trained=1000),
        config=Config.model_validate(config), heldout=None,
        spending=SimpleNamespace(describe=lambda: [("cost", "much")]),
    )  # fmt: skip


def test_sources_are_told_by_their_share_and_many_are_cut_short() -> None:
    assert list(module._data(trainer(100, [1, 3]))) == [
        "s1: 75 % of the rows, 3,200 tokens, 3 epochs to come",
        "s0: 25 % of the rows, tokenized while training",
    ]
    many = list(module._data(trainer(100, [1] * 9, sources=9)))
    assert len(many) == module.SHOWN_SOURCES + 1 and many[-1] == "and 3 more sources"


def test_a_time_budget_has_no_number_of_steps_yet() -> None:
    t = trainer(None, [1, 3])
    assert module._length(t, None) == "5 minutes; the first steps are timed to see how many fit"
    assert "epochs" not in " ".join(module._data(t))


def test_the_time_to_go_follows_from_the_steps_before() -> None:
    assert module._length(trainer(100, [1, 3], step=40), 2.0) == (
        "100 steps, 12.8k tokens (12.8 for each trained parameter); 60 steps are left, about 2 min 00 s"
    )


def test_what_goes_on_beside_steps_is_in_words() -> None:
    now = [0.0]
    phases = Phases(lambda: now[0])
    t = cast(Any, SimpleNamespace(phases=phases, clock=lambda: now[0]))
    assert module._activity(t) is None
    for name, said in (("evaluate", "evaluating, 3 s"), ("data", "waiting for data, 3 s"), ("step", None)):
        with phases.span(cast(Any, name)):
            now[0] += 3.0
            assert module._activity(t) == said
    with phases.span("data"):
        assert module._activity(t) is None


def test_a_gpu_is_told_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(total_memory=141 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert module._device(torch.device("cuda", 0)) == "NVIDIA H200 with 141.0 GiB"


def test_destinations_of_rows_are_told() -> None:
    monitor = Monitor.model_validate({"trackers": ["tensorboard", "mlflow"], "log_every": 25})
    assert module._metrics(monitor) == "every 25 steps, to metrics.jsonl, tensorboard and mlflow"


def test_nothing_held_out_is_said() -> None:
    t = trainer(100, [1, 3])
    t.folder = SimpleNamespace(path=Path("runs/x"))
    t.mesh = SimpleNamespace(device=torch.device("cpu"))
    t.plan.precision, t.forecast = "fp32", SimpleNamespace(text="1 s a step")
    lines = list(start_plan(t, "no peak", None))
    assert ("evaluates", "nothing is held out") in lines and ("cost", "much") in lines
