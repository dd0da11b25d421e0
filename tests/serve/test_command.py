"""`llmkit serve` as a user starts it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import time

import openai
import pytest

from llmkit.cli import main
from llmkit.serve.server import Server
from tests.limits import HANG
from tests.program import start, train


def test_it_serves_what_generate_prints_until_ctrl_c(project, capsys, monkeypatch):
    assert train("train.max_steps=3", "checkpoint.every_steps=0") == 0
    (project / "key").write_text("s3cret\n")
    options = ["--port", "0", "--api-key-file", "key", "--precision", "fp32"]
    process = start(project, "serve", "runs/tiny", *options)
    deadline = time.monotonic() + HANG
    while not (found := re.search(r"serving 'tiny' \(.*step-00000003.*\) at (\S+);", process.output())):
        assert process.poll() is None and time.monotonic() < deadline, process.output()
        time.sleep(0.2)
    with openai.OpenAI(base_url=found[1], api_key="s3cret", timeout=HANG) as client:
        answer = client.completions.create(model="tiny", prompt="the model", max_tokens=20, temperature=0)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(HANG) == 0
    assert "\nstopped\n" in process.output() and "s3cret" not in process.output()
    capsys.readouterr()
    command = ["generate", "runs/tiny", "--prompt", "the model", "--max-new-tokens", "20"]
    assert main([*command, "--temperature", "0", "--precision", "fp32"]) == 0
    assert capsys.readouterr().out == f"the model{answer.choices[0].text}\n"

    # Without a key others are warned of, where they can reach it.
    monkeypatch.setattr(Server, "run", lambda self, sockets: None)
    shutil.copytree("runs/tiny", os.fsdecode(b"caf\xe9"))
    assert main(["serve", os.fsdecode(b"caf\xe9"), "--port", "0"]) == 0
    assert "'caf\\\\xe9'" in capsys.readouterr().out
    for options, warned in (
        (["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--api-key-file", "key"], False), ([], False),
    ):  # fmt: skip
        assert main(["serve", "runs/tiny", "--port", "0", *options]) == 0
        assert ("WARNING: everybody who reaches http://0.0.0.0:" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "nowhere: no such folder"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1 port 0"),
        (["--api-key-file", "missing"], "missing: cannot be read"),
        (["--api-key-file", "two"], "must hold one key"),
    ],
)
def test_bad_input_is_one_message(more, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two").write_text("a b\n")
    assert main(["serve", "nowhere", "--port", "0", *more]) == 2
    captured = capsys.readouterr().err
    assert says in captured and captured.count("\n") == 1


def test_packages_that_are_not_installed_are_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", "runs/tiny"]) == 2
    assert "uvicorn is not installed (pip install 'llmkit[serve]')" in capsys.readouterr().err
