"""Errors that many checks or many processes found, as one."""

from __future__ import annotations

import pytest

from llmkit.errors import RunFault, SourceDryError, UserError, from_report, raise_together, to_report


def test_several_errors_are_one_with_a_line_each():
    raise_together([])
    only = RunFault("a disk is full")
    with pytest.raises(RunFault) as one:
        raise_together([only])
    assert one.value is only
    with pytest.raises(UserError) as several:
        raise_together([only, UserError("a key is wrong")])
    assert str(several.value) == "2 mistakes\n  a disk is full\n  a key is wrong"
    with pytest.raises(RunFault, match="2 mistakes"):
        raise_together([only, RunFault("another one, too")])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("x"), UserError, "rank 1: x"),
        (RunFault("x"), RunFault, "rank 1: x"),
        (SourceDryError("x"), RunFault, "rank 1: x"),
        (KeyError("x"), RunFault, "rank 1: KeyError: 'x' (that rank's output has the traceback)"),
    ],
)
def test_an_error_of_another_process_is_of_the_kind_that_the_command_line_knows(error, kind, message):
    found = from_report(to_report(error), "rank 1")
    assert type(found) is kind and str(found) == message
    assert str(from_report(to_report(UserError("x")))) == "x"
