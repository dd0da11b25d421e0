"""The text: worst first, what to do, what is wrong everywhere once, and no control characters."""

from __future__ import annotations

from llmkit.doctor.compare import compare, silent
from llmkit.doctor.findings import Report
from llmkit.doctor.table import machine_lines, node_lines
from tests.doctor.reports import finding, nodes


def test_a_machine_has_a_line_for_each_finding_and_one_for_what_to_do() -> None:
    report = Report("here", (finding("torch", "2.13.0"), finding("open files", "256", "warn")))
    assert list(machine_lines(report)) == [
        "ok    torch           2.13.0",
        "warn  open files      256",
        "                      -> mend it",
        "to look at: open files",
    ]
    assert list(machine_lines(Report("here", ())))[-1] == "all is well"


def test_the_table_of_nodes_has_the_worst_first_and_ends_with_the_sick() -> None:
    usual = [finding("gpus", "8 x H100", compared="should"), finding("open files", "256", "warn")]
    odd = [finding("gpus", "7 instead of 8", "fail"), finding("open files", "256", "warn")]
    lines = list(node_lines(compare([*nodes(n1=usual, n2=odd), silent("n3", "no report")])))
    assert [line.split()[0] for line in lines[:4]] == ["node", "n2", "n3", "n1"]
    assert lines[1].split()[1] == "sick" and lines[3].split()[1] == "warn"
    assert "FAIL  gpus            7 instead of 8" in "\n".join(lines)
    assert lines[-1] == "sick: n2 n3"


def test_what_is_wrong_everywhere_is_shown_once() -> None:
    same = [finding("open files", "256", "warn")]
    lines = list(node_lines(compare(nodes(n1=same, n2=same, n3=same))))
    assert sum("open files" in line for line in lines) == 1 and "on all nodes:" in lines
    assert lines[-1] == "sick:"


def test_when_all_is_well_it_says_so() -> None:
    lines = list(node_lines(compare(nodes(n1=[finding("torch")], n2=[finding("torch")]))))
    assert lines[-2:] == ["2 nodes: all is well", "sick:"]


def test_what_another_node_sends_cannot_steer_the_terminal() -> None:
    text = "\n".join(node_lines(nodes(n1=[finding("torch", "\x1b[2J\x07 2.13", "fail")])))
    assert "\x1b" not in text and "\x07" not in text
