"""The process of the checks: a line a finding, and a check that raises is no proof of a fault."""

from __future__ import annotations

import io
import json

import pytest

from llmkit.doctor import checks
from llmkit.doctor.checks import run_here
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope


def test_each_check_is_announced_and_an_error_in_one_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scope: Scope):
        yield Finding("first", "ok", scope.folder)
        raise ZeroDivisionError("of two numbers")

    monkeypatch.setattr(checks, "CHECKS", {"broken": broken, "empty": lambda scope: iter(())})
    out = io.StringIO()
    run_here(["broken", "empty"], Scope("here"), out)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [kind for kind, _ in lines] == ["begin", "finding", "finding", "begin"]
    assert lines[1][1]["value"] == "here"
    assert lines[2][1]["state"] == "warn" and "ZeroDivisionError: of two numbers" in lines[2][1]["value"]
