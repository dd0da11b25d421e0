"""The command line of `llmkit checkpoint`."""

from __future__ import annotations

import pytest

from llmkit.cli import main


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lst", "run"], "there is no 'lst'; did you mean list?"),
        (["average", "run"], "--out"),
        (["average", "run", "--out", "o", "--decay", "1"], "'1' is no number between 0 and 1"),
        (["average", "run", "--out", "o", "--decay", "nan"], "'nan' is no number between 0 and 1"),
        (["average", "run", "--out", "o", "--steps", "1,x"], "'x' is no whole number"),
        (["prune", "run", "--keep-last", "0"], "'0' is no whole number from 1"),
        (["prune", "run", "--keep-lst", "2"], "did you mean --keep-last?"),
        (["verify", "run", "more"], "unknown arguments: more"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["checkpoint", *arguments])
    assert stop.value.code == 2 and says in capsys.readouterr().err
