"""Pages of docs/ that scripts beside them make are as the scripts make them now."""

from __future__ import annotations

import importlib.util
import re
import struct
from pathlib import Path
from types import FunctionType, ModuleType
from xml.etree import ElementTree

import pytest

import llmkit
from llmkit import Hook, Model, Run, TrainedModel
from llmkit.cli import _parser
from tests.test_command_examples import COMMANDS

DOCS = Path(__file__).parents[1] / "docs"


def script(name: str) -> ModuleType:
    """A script of docs/, imported."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["commands", "curves", "python_api"])
def test_the_page_is_current(name: str) -> None:
    made = script(name).markdown()
    page = DOCS / f"{name.replace('_', '-')}.md"
    assert page.read_text() == made, f"renew it with: python docs/{name}.py > docs/{page.name}"


def test_the_page_of_the_api_has_what_the_package_has() -> None:
    page = (DOCS / "python-api.md").read_text()
    for name in llmkit.__all__:
        assert page.count(f"\n### llmkit.{name}\n") == 1
    for each in (Run, TrainedModel, Hook, Model):
        public = {name: value for name, value in vars(each).items() if name[0] != "_"}
        methods = [name for name, value in public.items() if isinstance(value, (FunctionType, property))]
        assert methods and all(f"\n#### {each.__name__}.{name}\n" in page for name in methods)
    assert "- `fresh`: raise where the run has checkpoints." in page  # from within a paragraph
    assert "- `plan`: complete." in page and "- `saved_step`" not in page  # what is promised of a trainer
    headings = re.findall(r"^#### (.+)$", page, flags=re.M)
    assert len(headings) == len(set(headings))


def test_the_page_of_commands_has_each_command_and_option_once() -> None:
    page = (DOCS / "commands.md").read_text()
    for command, parser in COMMANDS.items():
        headed = [part for part in page.split("\n###") if part.split("\n")[0].endswith(f" llmkit {command}")]
        (section,) = headed
        for action in parser._actions:
            for option in action.option_strings[-1:]:
                assert section.count(f"| `{option}`") + section.count(f"| `{option} ") == (option != "--help")
    assert len(COMMANDS) < page.count("\n```sh\n") + 2  # examples of each, but for those of llmkit itself


def test_the_synopsis_names_what_is_required() -> None:
    commands = script("commands")
    parser = _parser()._subparsers._group_actions[0].choices["new"]  # type: ignore[union-attr,index,call-overload]
    shown = commands._synopsis("new", parser)
    assert shown == "llmkit new [options] (--depth N | --params P | --flops F | --hours H) NAME"


def test_the_pictures_are_current_and_drawn_of_what_they_show() -> None:
    pictures, folder = script("pictures"), DOCS / "pictures"
    for name in ("mesh", "console", "life"):  # that of memory changes with every figure of the plan
        assert (folder / f"{name}.svg").read_text() == pictures.PICTURES[name](), "python docs/pictures.py"
    for file in folder.glob("*.svg"):
        root = ElementTree.fromstring(file.read_text())
        assert root.get("aria-label") and "http" not in file.read_text().replace(root.tag[1:-4], "")
        assert "prefers-color-scheme:dark" in file.read_text() and len(file.read_text()) < 20_000
    ranks = re.findall(r">rank (\d+)<", (folder / "mesh.svg").read_text())
    assert sorted(map(int, ranks)) == list(range(16))
    memory = pictures.planned(3)
    assert sum(pictures.by_part(memory).values()) * 2**30 == pytest.approx(memory["device_bytes"], rel=1e-3)
    events = pictures.rows_of("events.jsonl")
    assert [e["event"] for e in events if e["event"] in ("stop", "resume", "done")] == [
        "stop", "resume", "resume", "done",
    ]  # fmt: skip
    again = {row["step"]: row["loss_mean"] for row in pictures.rows_of("metrics.jsonl")}
    assert all(again[row["step"]] == row["loss_mean"] for row in pictures.rows_of("lost.jsonl"))


def test_the_pictures_of_a_report_are_on_a_page_and_small() -> None:
    drawn, page = script("report_picture"), (DOCS / "watching.md").read_text()
    for name in drawn.SCHEMES:
        content = (DOCS / "pictures" / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) <= drawn.LARGEST
        assert struct.unpack(">II", content[16:24]) == (drawn.WIDTH, drawn.HEIGHT)
        assert page.count(f'"pictures/{name}"') == 1


def test_a_browser_draws_the_report_light_and_dark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, run = script("report_picture"), str(DOCS.parent / "configs/recipes/curves/characters")
    monkeypatch.setattr(drawn, "FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert drawn.draw(run) == 0 and "no browser is there" in capsys.readouterr().err
    browser = tmp_path / "chromium"  # one that draws what it was asked for
    write = 'for word; do case $word in --screenshot=*) echo "$*" > "${word#*=}";; esac; done'
    browser.write_text(f"#!/bin/sh\n{write}\n")
    browser.chmod(0o755)
    assert drawn.draw(run) == 0
    asked = {name: (tmp_path / name).read_text() for name in drawn.SCHEMES}
    assert "preferredColorScheme=1" in asked["report.png"] and "/report.html" in asked["report.png"]
    assert "preferredColorScheme=0" in asked["report-dark.png"]
    browser.write_text("#!/bin/sh\necho cannot start >&2\n")
    with pytest.raises(RuntimeError, match="has drawn nothing: cannot start"):
        drawn.draw(run)
