"""What a shell is told to offer at a Tab, by way of argcomplete's protocol and in bash itself."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from llmkit.completion import ASKED, SHELLS, checkpoints, settings, shell_code
from tests.limits import HANG
from tests.program import environment


def offered(line, folder):
    """What the program answers to a shell that stands at the end of this line."""
    answer = folder / "answer"
    answer.touch()
    asked = {
        ASKED: "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
    }  # fmt: skip
    command = [sys.executable, "-m", "llmkit"]
    done = subprocess.run(
        command, env={**environment(), **asked}, cwd=folder, capture_output=True, timeout=HANG
    )
    assert done.stdout == b""
    return answer.read_text().split("\n")


def test_commands_are_offered_and_the_help_is_not_printed(tmp_path):
    found = offered("llmkit ", tmp_path)
    assert {"train", "checkpoint", "completion"} <= set(found)
    assert "usage" not in "".join(found)


def test_configurations_and_settings_are_offered_behind_a_command(tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.txt").touch()
    assert offered("llmkit train mi", tmp_path) == ["mine.yaml "]
    assert offered("llmkit train mine.yaml train.max_s", tmp_path) == ["train.max_steps="]


def test_sections_keys_and_values_of_settings():
    assert {"train.", "model.", "data."} <= set(settings(""))
    keys = settings("optimizer.na")
    assert "optimizer.name=" in keys and "data.sources.0.weight=" in keys
    assert settings("optimizer.name=") == ["optimizer.name=adamw", "optimizer.name=muon"]
    assert settings("kernels.compile=") == [f"kernels.compile={value}" for value in ("true", "false", "auto")]
    assert "data.sources[1].weight=" in settings("data.sources[1].w")
    assert "data.sources.2.weight=" in settings("data.sources.2.w")
    for typed in ("data.sources.1", "data.sources[1"):
        assert {entry[: len(typed)] for entry in settings(typed) if "sources" in entry} == {typed}
    assert "data.sources.12.type=" in settings("data.sources.12")
    assert "data.sources[12].type=" in settings("data.sources[12")
    assert "data.sources[0].type=jsonl" in settings("data.sources[0].type=j")
    assert settings("no.such=") == []


def test_checkpoints_of_a_run(tmp_path):
    run = tmp_path / "demo"
    for name in ("step-00001000", "step-00000500", "step-00000700.part"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert list(checkpoints(f"{run}@")) == [f"{run}@500", f"{run}@1000"]
    (run / "checkpoints/best.json").touch()
    assert next(checkpoints(f"{run}@")) == f"{run}@best"
    assert list(checkpoints(f"{tmp_path}/none@")) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_code_of_each_shell_names_the_program(shell):
    code = shell_code(shell)
    assert "llmkit" in code and ASKED in code and code.endswith("\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_runs_its_code(tmp_path):
    (tmp_path / "code.sh").write_text(shell_code("bash"))
    (tmp_path / "llmkit").write_text(f'#!/bin/sh\nexec {sys.executable} -m llmkit "$@"\n')
    (tmp_path / "llmkit").chmod(0o755)
    script = (
        'PATH="$PWD:$PATH"; source code.sh; COMP_LINE="llmkit chec"; COMP_POINT=11; COMP_TYPE=9\n'
        "COMP_WORDS=(llmkit chec); COMP_CWORD=1\n"
        '"$(complete -p llmkit | sed "s/.*-F \\([^ ]*\\).*/\\1/")" llmkit; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=HANG
    )
    assert done.stdout.split() == ["checkpoint"], done.stderr


def typed_in_zsh(folder, lines):
    """What zsh, on a terminal of its own, shows of each line once Tab was pressed behind it."""
    (folder / "code.zsh").write_text(shell_code("zsh"))
    (folder / ".zshrc").write_text("PS1='ready> '; autoload -U compinit; compinit -u; source ./code.zsh\n")
    (folder / "llmkit").write_text(f'#!/bin/sh\nexec {sys.executable} -m llmkit "$@"\n')
    (folder / "llmkit").chmod(0o755)
    own = {"ZDOTDIR": str(folder), "HOME": str(folder), "TERM": "dumb"}
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.chdir(folder)
            path = f"{folder}:{os.environ['PATH']}"
            os.execvpe("zsh", ["zsh", "-i"], {**environment(), **own, "PATH": path})
        finally:
            os._exit(127)
    try:
        rest = after(terminal, "ready> ", "")[1]
        for line in lines:
            os.write(terminal, f"\x15{line}\t-end".encode())  # Ctrl-U first: the line before goes
            shown, rest = after(terminal, "-end", rest)
            yield shown
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def after(terminal, wanted, seen):
    """Reads from a terminal until it has written a text; what stands before that, and behind."""
    end = time.monotonic() + HANG
    while wanted not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"zsh never wrote {wanted!r}: {seen!r}"
        seen += os.read(terminal, 4096).decode()
    before, _, behind = seen.partition(wanted)
    return before, behind


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes_commands_settings_and_checkpoints(tmp_path):
    (tmp_path / "runs/demo/checkpoints/step-00000100").mkdir(parents=True)
    asked = {
        "llmkit chec": "llmkit checkpoint ",
        "llmkit train x.yaml data.sources[1].wei": "\\[1\\].weight=",
        "llmkit evaluate runs/demo@": "runs/demo@100 ",
    }
    for wanted, shown in zip(asked.values(), typed_in_zsh(tmp_path, asked)):
        assert wanted in shown
