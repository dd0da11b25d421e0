"""The command line itself: quick, quiet about tracebacks, honest in its exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmkit.cli import _wants_color, main
from tests.program import environment, make_project

HEAVY = (
    "torch",
    "numpy",
    "tokenizers",
    "wandb",
    "datasets",
    "transformers",
    "deepspeed",
    "accelerate",
    "pydantic",
)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\nfrom llmkit.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), text=True, capture_output=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr


def test_a_command_that_does_not_exist_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["dance"])
    assert stop.value.code == 2


def test_overrides_may_stand_behind_options(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny.yaml", "--fresh", "train.max_steps=x"]) == 2
    assert "train.max_steps" in capsys.readouterr().err
    assert main(["train", "tiny.yaml", "--train.max_steps=3"]) == 2
    assert "no dashes" in capsys.readouterr().err
    for wrong in (["train", "tiny.yaml", "--frehs"], ["generate", "run", "--prompt", "x", "y=3"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2


def test_config_shows_each_value_with_its_origin_and_what_follows(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["config", "tiny.yaml", "train.max_steps=7"]) == 0
    printed = capsys.readouterr().out
    assert "max_steps: 7" in printed
    assert "# command line" in printed
    assert "# tiny.yaml:5" in printed
    assert "# default" in printed
    assert "tokens_per_step" in printed


def test_config_needs_a_file_or_keys(capsys):
    assert main(["config"]) == 2
    assert "--keys" in capsys.readouterr().err
    assert main(["config", "--keys"]) == 0
    assert "train.max_steps" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    make_project(tmp_path)
    command = f"{sys.executable} -m llmkit config --keys | head -1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(), text=True, capture_output=True
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("asked", "terminal", "no_color", "wanted"),
    [
        ("always", False, "1", True),
        ("never", True, "", False),
        ("auto", True, "", True),
        ("auto", True, "1", False),
        ("auto", False, "", False),
    ],
)
def test_colours_are_for_terminals_unless_asked_for(monkeypatch, asked, terminal, no_color, wanted):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    assert _wants_color(asked) is wanted
