"""Reports of nodes in a folder: complete, missing, damaged, and what the comparison of them removes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkit.doctor.compare import sick_nodes
from llmkit.doctor.disk import nodes_seen, show_up
from llmkit.doctor.findings import Finding
from llmkit.doctor.node import compared, meeting_of, read_reports, write_report
from llmkit.errors import UserError
from tests.doctor.reports import finding, nodes


def test_reports_are_read_in_the_order_of_the_job_and_missing_ones_fail(tmp_path: Path) -> None:
    for report in nodes(n2=[finding("torch")], n1=[finding("torch")]):
        write_report(tmp_path / "new", report)
    reports = read_reports(tmp_path / "new", 4, ["n2", "n3", "n1"])
    assert [(report.node, report.state) for report in reports] == [
        ("n2", "ok"), ("n3", "fail"), ("n1", "ok"), ("unknown-1", "fail"),
    ]  # fmt: skip


def test_a_damaged_report_fails_for_its_node(tmp_path: Path) -> None:
    (tmp_path / "n1.json").write_text('{"node": "n1"')
    write_report(tmp_path, nodes(n3=[finding("torch")])[0])
    (tmp_path / "n3.json").rename(tmp_path / "n2.json")
    reports = read_reports(tmp_path, None)
    assert [report.state for report in reports] == ["fail", "fail"]
    assert reports[1].findings[0].value == "its report cannot be read: it is of n3"


def test_folders_that_cannot_be_used_are_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"doctor --node: cannot write into .*file"):
        write_report(tmp_path / "file", nodes(n1=[])[0])
    with pytest.raises(UserError, match=r"doctor --table: cannot read .*absent"):
        read_reports(tmp_path / "absent", 1)


def test_the_run_folder_is_compared_and_left_clean(tmp_path: Path) -> None:
    folder, runs = tmp_path / "into", tmp_path / "runs"
    runs.mkdir()
    meeting = meeting_of("a folder")
    show_up(runs, meeting, "n1")
    for node in ("n1", "n2"):  # n2 has written elsewhere
        shared = Finding("shared folder", "ok", str(runs), "", "seen", {node: 1.0})
        write_report(folder, nodes(**{node: [shared]})[0])
    reports = compared(read_reports(folder, 2), meeting)
    assert sick_nodes(reports) == ["n2"]
    assert nodes_seen(runs, meeting) == [] and os.listdir(runs) == []
