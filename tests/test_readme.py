"""Every command of the README runs, with fewer steps, on a smaller corpus where it trains.

`make demo`, `make test` and `pip install` are what `.ci/run` itself does.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import uvicorn

from llmkit.cli import _parser, main
from llmkit.config.load import load
from llmkit.serve.server import Server
from tests.limits import HANG

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALLER = [
    "train.max_steps=3", "model.num_hidden_layers=1", "model.hidden_size=32", "model.head_dim=8",
    "model.intermediate_size=32", "data.sequence_length=64", "kernels.compile=false",
    "data.tokenizer.vocab_size=300", "monitor.wandb.mode=disabled",
]  # fmt: skip

OF_WEIGHTS = [each for each in SMALLER if not each.startswith(("model.", "data."))]
"""The same for a run whose model comes with its weights. By so few tokens no pair of answers fits into 64."""
WITH_WEIGHTS = {"configs/sft.yaml", "configs/dpo.yaml", "configs/lora.yaml"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def lines() -> list[list[str]]:
    """The words of every command line of the README."""
    found = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [line for line in found if line]


def commands() -> list[list[str]]:
    """The llmkit commands of the README in their order, without `llmkit`."""
    return [line[1:] for line in lines() if line[0] == "llmkit"]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder in which the README's commands can run, and be quick."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    (yaml,) = blocks("yaml")
    Path("mine.yaml").write_text(yaml)
    Path("texts/deep").mkdir(parents=True)
    with pyarrow.CompressedOutputStream("more-1.jsonl.zst", "zstd") as file:
        file.write(b'{"text": "a record of text, a line each"}\n' * 100)
    for number in range(40):
        Path(f"texts/deep/{number}.txt").write_text(f"document {number}: some words to train on. " * 20)
    # The demo's corpus is large for a test: a folder stands in for it.
    demo = Path("configs/demo.yaml")
    demo.write_text(demo.read_text().replace("- type: stdlib", "- {type: text, path: texts}"))
    return tmp_path


def test_every_command_runs_in_order(project, capsys, monkeypatch):
    def stopped(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        raise KeyboardInterrupt  # what uvicorn gives on when Ctrl-C has ended it

    monkeypatch.setattr(Server, "run", stopped)
    for script in (line for line in lines() if line[:2] == ["python", "configs/stdlib_questions.py"]):
        subprocess.run([sys.executable, *script[1:]], check=True, capture_output=True, timeout=HANG)
    ran, printed = set(), ""
    for command in commands():
        smaller = OF_WEIGHTS if WITH_WEIGHTS & {*command} else SMALLER
        more = [*smaller, f"train.max_steps={len(ran) + 3}"] if command[0] in ("train", "reference") else []
        if command[0] in ("data", "config") and "--keys" not in command:
            more = SMALLER
        if command[0] == "serve":
            more = ["--port", "0"]
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is os.walk?\n/reset\nWhat is os.sep?\n"))
        assert main([*command, *more]) == 0, command
        ran.add(command[0])
        printed += capsys.readouterr().out
    wanted = "train generate evaluate config data doctor new reference inspect serve export report runs top "
    wanted += "checkpoint plan completion"
    assert ran == set(wanted.split())
    for part in ("bits per byte", "serving 'sft'", "transformers", "gives llmkit's logits", "an adapter of"):
        assert part in printed, part
    assert "<script" in Path("page.html").read_text()


def test_the_example_takes_nothing_over_that_was_meant_for_another_run(project):
    assert load("mine.yaml").remarks == ()


LAUNCHES = [line for line in lines() if "-m" in line and "llmkit" in line]


@pytest.mark.parametrize("command", LAUNCHES, ids=" ".join)
def test_every_launch_is_of_what_there_is(command, project):
    """That such launches train is tested in tests/launch, of these very ones by the next test."""
    assert Path(sys.executable).with_name(command[0]).exists()
    for file in (word for word in command if word.endswith(".yaml") and word != "mine.yaml"):
        assert (ROOT / file).exists()
    train = command[command.index("llmkit") + 1 :]
    assert train[0] == "train" and main(["config", *train[1:], *SMALLER]) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", LAUNCHES, ids=" ".join)
def test_every_launch_trains(command, project):
    shutil.copytree(ROOT / "launch", project / "launch")
    smaller = [*SMALLER, "data.tokenizer.type=bytes", "data.tokenizer.vocab_size=null"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = str(Path(sys.executable).with_name(command[0]))
    done = subprocess.run(
        [program, *command[1:], *smaller], env=environment, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "runs/mine/DONE").exists()


PAGES = pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name
)


@PAGES
def test_commands_of_pages_have_the_options_that_there_are(page):
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.S | re.M):
        for line in (block if language in ("", "sh") else "").replace("\\\n", " ").splitlines():
            found = re.match(r"(?:[^#\"']* -m )?llmkit ([^\[]*)$", line)  # not what is quoted for a shell
            if found:
                given = shlex.split(found[1], comments=True)
                _, rest = _parser().parse_known_args([word for word in given if word not in ">|"])
                assert not [word for word in rest if word.startswith("-")], line


@PAGES
def test_what_pages_link_to_exists(page):
    for link in re.findall(r"\]\(([^):\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), link
        headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M) if anchor else []
        names = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}
        assert not anchor or anchor in names, link


@pytest.mark.parametrize("place", re.findall(r"^\| `([^`]+)`", README, flags=re.M))
def test_every_listed_place_exists(place):
    assert (ROOT / place).exists()


def test_no_room_is_missing_from_the_list():
    for room in (ROOT / "llmkit").iterdir():
        if room.is_dir() and (room / "__init__.py").exists():
            assert f"`llmkit/{room.name}/`" in README, room.name
