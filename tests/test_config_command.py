"""`llmkit config`: for people, for programs, for editors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.keys import all_keys
from tests.program import make_project

GPT2 = Path(__file__).parents[1] / "configs/models/gpt2-124m.yaml"


@pytest.fixture
def here(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_a_model_file_alone_is_described_by_its_sizes(here, capsys):
    assert main(["config", str(GPT2)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("model:\n") and "train:" not in shown
    assert "124,439,808" in shown and "checkpoint" in shown and "assumed" not in shown
    assert main(["config", str(GPT2), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["parameters"] == 124_439_808 and found["plan"] is None
    assert main(["config", str(GPT2), "--run-folder"]) == 2
    assert "data.sources is required" in capsys.readouterr().err


def test_a_run_that_lacks_something_is_still_refused(here, capsys):
    Path("a.yaml").write_text("model: {hidden_size: 64}\nrun: {name: a}\n")
    assert main(["config", "a.yaml"]) == 2
    message = capsys.readouterr().err
    assert "data.sources is required" in message and "DATA" not in message
    assert main(["config", str(GPT2), "model.hidden_sizes=3"]) == 2
    assert "did you mean model.hidden_size?" in capsys.readouterr().err


def test_programs_get_settings_and_plan(here, capsys):
    assert main(["config", "tiny.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["tokens_per_step"] > 0
    assert set(found) == {"config", "origins", "model", "plan", "pending", "notes"}


def test_programs_get_the_run_folder(here, capsys):
    assert main(["config", "tiny.yaml", "--run-folder"]) == 0
    folder = capsys.readouterr().out.rstrip("\n")
    assert main(["config", "tiny.yaml", "--run-folder", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"run_folder": folder} and folder.endswith("/runs/tiny")


def test_keys_for_programs(capsys):
    assert main(["config", "--keys", "optimizer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["path"] == "optimizer" and found[0]["is_section"]
    assert "optimizer.learning_rate" in [key["path"] for key in found]


def test_the_schema_is_that_of_the_settings_and_of_plugins(here, capsys):
    assert main(["config", "--schema"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["properties"]) - {"extends", "reset"} == {path for path in all_keys() if "." not in path}
    assert main(["config", "tiny.yaml", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["config", "tiny.yaml", "train.max_steps=3", "--schema"]) == 2
    assert "--schema takes a CONFIG" in capsys.readouterr().err
    assert main(["config", "--schema", "--keys"]) == 2


def test_colours_are_shown_where_they_are_asked_for(here, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["config", "tiny.yaml", "run.seed=3"])
    plain = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["config", "tiny.yaml", "run.seed=3"])
    coloured = capsys.readouterr().out
    assert "\x1b[36m# command line\x1b[0m" in coloured and "\x1b[" not in plain
    for code in ("0", "1", "2", "33", "36"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == plain
