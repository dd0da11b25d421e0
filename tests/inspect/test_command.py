"""`llmkit inspect` on a run, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from llmkit.cli import main
from llmkit.inspect import command as inspect_room
from tests.program import make_project, train

PROMPT = "the model <b>reads</b>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=4", "checkpoint.every_steps=0") == 0
    return folder / "runs" / "tiny"


def test_a_page_is_written_once_and_replaced_when_asked(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    command = ["inspect", str(run), "--prompt", PROMPT, "--output", str(page)]
    assert main(command) == 0
    assert f"wrote {page}" in capsys.readouterr().out
    text = page.read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert len(data["losses"]) == 1 + len(PROMPT)
    mean = sum(data["losses"][:-1]) / len(PROMPT)
    written = float(re.search(r"([\d.]+) nats a token", text)[1])
    assert written == pytest.approx(mean, abs=1e-3) and 3 < written < 7
    assert "step-00000004" in text and "<b>" not in text
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    odd = tmp_path / os.fsdecode(b"caf\xe9")  # a name that is no UTF-8
    shutil.copytree(run, odd)
    assert main(["inspect", str(odd), *command[2:], "--force"]) == 0
    assert r"<h1>caf\udce9</h1>" in page.read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--prompt": ""}, "--prompt is empty"),
        ({"--prompt": "x" * 32}, r"33 tokens .* room for 32"),
        ({"--output": "missing/page.html"}, "--output missing/page.html cannot be written"),
    ],
)
def test_bad_input_is_one_message(run, changes, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"--prompt": "a", "--output": "page.html"} | changes
    assert main(["inspect", str(run), *(part for pair in options.items() for part in pair)]) == 2
    captured = capsys.readouterr().err
    assert re.search(says, captured) and captured.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_page_has_a_largest_size(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_room, "MOST_BYTES", 18 * 6**2)  # 8 maps of attention, and attributions
    call = ["inspect", str(run), "--output", str(tmp_path / "page.html"), "--prompt"]
    assert main([*call, "x" * 6]) == 2
    assert "a page of this model has room for 6 (" in capsys.readouterr().err
    assert main([*call, "x" * 5]) == 0
