"""`llmkit evaluate --needle` on a run, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.errors import UserError
from llmkit.evaluation.needle_command import read_filler
from tests.program import train


def test_a_run_is_tested_with_tables_json_and_a_picture(project, capsys):
    assert train("train.max_steps=2", "data.sequence_length=256") == 0
    capsys.readouterr()
    command = ["evaluate", "runs/tiny", "--needle", "--trials", "2", "--depths", "100,0"]
    assert main([*command, "--plot", "needle.svg"]) == 0
    shown, said = capsys.readouterr()
    assert "256 tokens: 0 % of the numbers found" in said
    found, losses = shown.split("\n\n")
    assert [line.split() for line in found.splitlines()[1:]] == [
        ["depth", "256"], ["0", "%", "0", "%"], ["100", "%", "0", "%"],
    ]  # fmt: skip
    assert Path("needle.svg").read_text().startswith("<svg ")
    assert main([*command, "--json", "--lengths", "200,150", "--batch-size", "1", "--seed", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"]["weights"].endswith("step-00000002")
    assert result["needle"] == {"trials": 2, "digits": 5, "seed": 3}
    keys = [(cell["length"], cell["depth"]) for cell in result["cells"]]
    assert keys == [(150, 0.0), (150, 1.0), (200, 0.0), (200, 1.0)]
    # Two steps teach little: an answer costs about what a byte of the vocabulary's does.
    assert all(3.0 < cell["loss"] < 8.0 for cell in result["cells"])
    assert losses.splitlines()[0] == "loss of the number, nats a token"
    assert main([*command, "--lengths", "257"]) == 2
    assert "a text of 257 tokens is longer than the 256 that the model can read" in capsys.readouterr().err
    assert main([*command, "--plot", "none/needle.svg"]) == 2
    assert "--plot none/needle.svg: there is no folder none" in capsys.readouterr().err


def test_filler_comes_from_a_file(tmp_path):
    file = tmp_path / "filler.txt"
    file.write_text("One. Two.\n")
    assert read_filler(str(file)) == ("One.", " Two.", "\n")
    file.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"holds bytes that are no UTF-8 \(at byte 3\)"):
        read_filler(str(file))
    file.write_text("")
    with pytest.raises(UserError, match="is empty; name a file with text"):
        read_filler(str(file))
    with pytest.raises(UserError, match=r"none\.txt"):
        read_filler(str(tmp_path / "none.txt"))
