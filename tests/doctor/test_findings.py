"""What nodes tell each other: read back as it was, and refused where it is anything else."""

from __future__ import annotations

import json

import pytest

from llmkit.doctor.findings import LONGEST, Finding, Report, report_from_json

REPORT = Report(
    "n1",
    (Finding("disk", "warn", "slow", "mend it", "speed", {"write": 1.5}), Finding("torch", "ok", "2.13.0")),
)


def test_a_report_is_read_back_as_it_was() -> None:
    assert report_from_json(json.dumps(REPORT.to_json())) == REPORT
    assert REPORT.state == "warn"
    assert REPORT.find("torch") == REPORT.findings[1] and REPORT.find("gpus") is None


def test_a_finding_never_improves() -> None:
    failed = REPORT.findings[0].worse("fail", "n2 has more", "look there").worse("warn", "odd", "")
    assert (failed.state, failed.value) == ("fail", "slow; n2 has more; odd")
    assert failed.advice == "mend it; look there"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"node": 1, "findings": []}', '{"node": "n1", "findings": {}}',
        '{"node": "n1", "findings": [1]}', '{"node": "n1", "findings": [{"name": "disk"}]}',
        json.dumps(REPORT.to_json()).replace('"warn"', '"dead"'),
        json.dumps(REPORT.to_json()).replace('"speed"', '"by chance"'),
        json.dumps(REPORT.to_json()).replace("1.5", "NaN"),
        json.dumps(REPORT.to_json()).replace("1.5", '"1.5"'),
        json.dumps(REPORT.to_json()).replace('"slow"', "null"),
        json.dumps(REPORT.to_json())[:-3],
        " " * (LONGEST + 1),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        report_from_json(text)
