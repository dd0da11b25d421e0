"""What the command lines of all commands share."""

from __future__ import annotations

import argparse
import io
import json
import os

import pytest

from llmkit.command_line import (
    CommandParser,
    add_run,
    count,
    positive,
    print_json,
    settings_as_overrides,
    show,
    unicode_text,
    waiting_for,
)
from llmkit.errors import UserError
from tests.test_error_text import Terminal


def test_numbers_within_bounds():
    assert (count("0"), count(" 7 "), positive("1"), count("65535", most=65535)) == (0, 7, 1, 65535)


@pytest.mark.parametrize(
    ("text", "rule", "says"),
    [
        ("-1", count, r"from 0 to 2\^63 - 1"),
        ("1.5", count, "no whole number"),
        ("9" * 50, count, "no whole number"),
        (str(2**63), count, "no whole number"),
        ("0", positive, "from 1"),
        ("70000", lambda text: count(text, most=65535), "to 65535"),
    ],
)
def test_other_numbers_are_refused(text, rule, says):
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        rule(text)


def test_bytes_that_are_no_text_are_refused_with_command_and_option():
    assert unicode_text("inspect", "--prompt", "é") == "é"
    with pytest.raises(UserError, match=r"inspect: --prompt .*UTF-8"):
        unicode_text("inspect", "--prompt", "a\udc80")


def test_a_choice_that_was_probably_meant_is_named(capsys):
    parser = CommandParser()
    add_run(parser)
    assert parser.parse_args(["runs/demo"]).precision == "auto"
    with pytest.raises(SystemExit):
        parser.parse_args(["runs/demo", "--precision", "fp23"])
    assert "did you mean fp32?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("--run.seed 5 c.yaml", "c.yaml run.seed=5"),
        ("--run.seed=5 --fresh --a.b=x c.yaml c.d=1 --e.f=2", "--fresh c.yaml run.seed=5 a.b=x c.d=1 e.f=2"),
        ("--from runs/x --run.seed=5 c.yaml", "--from runs/x c.yaml run.seed=5"),
        ("--from=runs/x --run.seed=5 c.yaml --from y", "--from=runs/x c.yaml run.seed=5 --from y"),
        ("--run.seed=5 --from", "--from run.seed=5"),
    ],
)
def test_settings_before_the_configuration_come_behind_it(given, found):
    assert settings_as_overrides(given.split(), {"--from"}) == found.split()


def test_what_is_waited_for_is_said_on_a_terminal_and_gone_afterwards(monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((80, 24)))
    stream = Terminal()
    with waiting_for("loading", {"TERM": "xterm", "RANK": "0"}, stream):
        assert stream.getvalue() == "loading ..."
    assert stream.getvalue() == "loading ...\r\x1b[K"
    for environment, other in (
        ({"TERM": "dumb"}, Terminal()),
        ({"TERM": "xterm", "RANK": "1"}, Terminal()),
        ({"TERM": "xterm"}, io.StringIO()),
    ):
        with waiting_for("loading", environment, other):
            assert other.getvalue() == ""
        assert other.getvalue() == ""


def test_a_terminal_gets_whole_words_of_the_output(monkeypatch, capsys):
    line = "files      1 of weights, 0.013 GB; README.md, config.json, generation_config.json"
    show(line)
    assert capsys.readouterr().out == f"{line}\n"
    monkeypatch.setattr("llmkit.command_line.terminal_width", lambda stream: 60)
    show(line)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 and shown[1] == "    generation_config.json"
    show(f"{line}\n\nshort")
    assert capsys.readouterr().out.splitlines() == [*shown, "", "short"]


def test_numbers_that_are_not_finite_are_null_in_json(capsys):
    print_json({"loss": float("nan"), "rows": [(1.5, float("inf")), {"x": -float("inf")}], "none": None})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"loss": None, "rows": [[1.5, None], {"x": None}], "none": None}
