"""How-tos of docs/: their commands run, and every setting that they name exists."""

from __future__ import annotations

import ast
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.keys import all_keys, general
from llmkit.config.load import load
from tests.program import CONFIG, make_project

DOCS = Path(__file__).parents[1] / "docs"
SMALLER = {"@2000": "@5", "hidden_size=1024": "hidden_size=48", "other.txt": "corpus"}
"""What stands on the pages -> what fits a run of twelve steps."""


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), flags=re.S | re.M)
    return [block for of, block in found if of == language]


def commands(page: str) -> list[list[str]]:
    """The words of each command line of a page, made smaller."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines]
    return [[_smaller(word) for word in words] for words in found if words]


def _smaller(word: str) -> str:
    for large, small in SMALLER.items():
        word = word.replace(large, small)
    return word


@pytest.mark.exhaustive
def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    mine = CONFIG.replace("name: tiny", "name: mine").replace(
        "every_steps: 5\n", "every_steps: 5\n  keep_last: 9\n"
    )
    Path("mine.yaml").write_text(mine)
    assert main(["train", "mine.yaml", "train.max_steps=6"]) == 0
    ran = set()
    for words in [*commands("change-a-run.md"), *commands("compare-runs.md")]:
        ran.add(words[1])
        if words[0] == "touch":
            Path(words[1]).touch()
        else:
            assert words[0] == "llmkit" and main(words[1:]) == 0, (words, capsys.readouterr().err)
    printed = capsys.readouterr().out
    (shown,) = blocks("change-a-run.md", "")
    for line in shown.splitlines():  # the page's lines, but for the figures
        pattern = re.sub(r"\d[\d.e-]*", r"[\\d.e-]+", re.escape(line).replace(r"\-", "-").replace(r"\.", "."))
        assert re.search(pattern, printed), line
    assert ran == {"runs/mine/STOP", "config", "train", "report", "runs", "evaluate", "checkpoint"}
    assert "wide" in Path("compared.html").read_text()
    (program,) = blocks("compare-runs.md", "python")
    exec(compile(program, "compare-runs.md", "exec"), {})
    narrow, wide = capsys.readouterr().out.splitlines()
    assert narrow.split()[:3] == ["narrow", "32", "12"] and wide.split()[:3] == ["wide", "48", "12"]


SECTIONS = "run|model|data|train|optimizer|schedule|parallel|kernels|checkpoint|evaluate|monitor"


@pytest.mark.parametrize("page", ["come-from.md", "change-a-run.md", "compare-runs.md"])
def test_every_setting_that_is_named_exists(page: str) -> None:
    known, named = all_keys(), list[str]()
    for line in (DOCS / page).read_text().splitlines():
        ours = line.partition(" | ")[2] if line.startswith("| ") else line  # on the left are others' names
        words = " ".join(re.findall(r"`([^`]+)`", ours)).split()
        named += [word for word in words if re.match(rf"(?:{SECTIONS})\.(?!bin|pth)\w", word)]
    assert named
    keys = [re.split("[=:]", word)[0].replace("[0]", ".0") for word in named]
    assert [key for key in keys if general(key) not in known] == []


def test_the_names_of_the_trainer_are_those_of_transformers() -> None:
    package = find_spec("transformers")
    assert package is not None and package.origin is not None
    source = Path(package.origin).with_name("training_args.py").read_text()
    (arguments,) = [
        node for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    ]  # fmt: skip
    fields = {each.target.id for each in arguments.body if isinstance(each, ast.AnnAssign)}  # type: ignore[union-attr]
    section = (
        (DOCS / "come-from.md").read_text().partition("| `TrainingArguments` |")[2].partition("**Data.**")[0]
    )
    named = {name for row in section.splitlines() for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert len(named) > 30 and named <= fields, named - fields


def test_the_configurations_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(DOCS.parent / "configs")
    monkeypatch.chdir(tmp_path)
    for content in blocks("come-from.md", "yaml"):
        Path(re.match(r"# (\S+)\n", content)[1]).write_text(content)  # type: ignore[index]
    gpt2 = load("gpt2.yaml")
    assert gpt2.remarks == () and gpt2.config.train.global_batch_size == 480
    lora = load("lora-1b.yaml")  # without its weights, which are missing here
    assert lora.remarks == () and lora.config.train.lora.rank == 16
