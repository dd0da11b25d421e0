"""Options of `llmkit evaluate` that do not go together."""

from __future__ import annotations

import json

import pytest

from llmkit.cli import main
from tests.program import train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "3"], "--limit goes with --tasks"),
        (["--num-fewshot", "0"], "--num-fewshot goes with --tasks"),
        (["--tasks", "a", "--data", "x"], "--tasks bring their own data; leave out --data"),
        (["--tasks", "a", "--system", "x"], "--system goes with --apply-chat-template"),
        (["--tasks", "a", "--samples"], "--samples go to the file of --output"),
        (["--tasks", ","], "--tasks names none"),
        (["--batch-size", "2"], "--batch-size goes with --tasks or --needle"),
        (["--lengths", "512"], "--lengths goes with --needle"),
        (["--tasks", "a", "--plot", "x.svg"], "--plot goes with --needle"),
        (["--needle", "--tasks", "a"], "--needle makes texts of its own; leave out --tasks"),
        (["--needle", "--data", "x"], "--needle makes texts of its own; leave out --data"),
        (["--needle", "--limit", "3", "--tasks", "a"], "--needle makes texts of its own; leave out --tasks"),
        (["--needle", "--output", "x"], "--output goes with --tasks"),
    ],
)
def test_what_does_not_go_together_is_refused(capsys, options, message):
    assert main(["evaluate", "runs/none", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--depths", "0,101"), ("--depths", "a"), ("--lengths", "512,"), ("--digits", "0")]
)
def test_numbers_that_are_none_are_refused(capsys, option, value):
    with pytest.raises(SystemExit):
        main(["evaluate", "runs/none", "--needle", option, value])
    assert option in capsys.readouterr().err


def test_the_held_out_loss_as_json(project, capsys):
    assert train("train.max_steps=2") == 0
    capsys.readouterr()
    assert main(["evaluate", "runs/tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"].endswith("step-00000002") and found["data"] is None
    assert all(found[name] > 0 for name in ("loss", "perplexity", "bits_per_byte", "targets"))
