"""Nodes held against each other: the odd one is named, a busy or an equal one never is."""

from __future__ import annotations

import random

import pytest

from llmkit.doctor.compare import compare, sick_nodes, silent, speed_state
from llmkit.doctor.findings import Report, State
from tests.doctor.reports import finding, nodes, seen, speeds


def by_name(reports: list[Report]) -> dict[str, Report]:
    return {report.node: report for report in reports}


def test_nodes_that_are_alike_are_well() -> None:
    same = [finding("torch", "2.13.0", compared="must"), speeds("products", gpu0=600e12, gpu1=610e12)]
    reports = compare(nodes(n1=same, n2=same))
    assert [report.state for report in reports] == ["ok", "ok"]
    assert sick_nodes(reports) == []


def test_the_node_with_another_version_is_the_odd_one_and_comes_first() -> None:
    usual, other = (finding("torch", version, compared="must") for version in ("2.13.0", "2.12.1"))
    reports = compare(nodes(n1=[usual], n2=[usual], n3=[other]))
    assert [report.node for report in reports] == ["n3", "n1", "n2"]
    assert sick_nodes(reports) == ["n3"]
    assert reports[0].findings[0].value == "2.12.1; n1 and n2 have 2.13.0"


def test_of_two_nodes_that_of_the_first_counts() -> None:
    first, second = (finding("config", digest, compared="must") for digest in ("a.yaml 11", "a.yaml 22"))
    reports = by_name(compare(nodes(n1=[first], n2=[second])))
    assert reports["n1"].state == "ok"
    assert reports["n2"].findings[0].value == "a.yaml 22; n1 has 11"


def test_what_should_be_the_same_is_remarked_on() -> None:
    usual = finding("environment", "NCCL_DEBUG=INFO OMP_NUM_THREADS=4", compared="should")
    more = finding("environment", "NCCL_DEBUG=INFO OMP_NUM_THREADS=4 NCCL_P2P_DISABLE=1", compared="should")
    reports = by_name(compare(nodes(n1=[usual], n2=[usual], n3=[more])))
    assert reports["n3"].state == "warn" and sick_nodes(list(reports.values())) == []
    assert reports["n3"].findings[0].value.endswith("; n1 and n2 do not have NCCL_P2P_DISABLE=1")


@pytest.mark.parametrize(
    ("speed", "others", "on_gpu", "state"),
    [
        (590.0, [600.0, 610.0, 605.0], True, "ok"),
        (450.0, [600.0, 610.0, 605.0], True, "warn"),
        (300.0, [600.0, 610.0, 605.0], True, "fail"),
        (300.0, [600.0], True, "fail"),
        (300.0, [600.0, 300.0, 620.0, 310.0], True, "ok"),  # the others differ as much
        (300.0, [600.0, 610.0, 605.0], False, "ok"),  # a processor has other work as well
        (1.0, [600.0, 610.0, 605.0], False, "warn"),
        (900.0, [600.0, 610.0, 605.0], True, "ok"),
    ],
)
def test_a_speed_is_out_of_line(speed: float, others: list[float], on_gpu: bool, state: State) -> None:
    assert speed_state(speed, others, on_gpu) == state


def test_the_slow_gpu_is_named_and_not_the_kind_that_is_slower_everywhere() -> None:
    well, slow = speeds("products", gpu0=600e12, gpu1=605e12), speeds("products", gpu0=602e12, gpu1=240e12)
    reports = compare(nodes(n1=[well], n2=[slow], n3=[well]))
    assert sick_nodes(reports) == ["n2"]
    assert "#1: 0.40 of the median of the others" in reports[0].findings[0].value
    mixed = speeds("products", gpu0=600e12, CPU=1e12)
    assert compare(nodes(n1=[mixed]))[0].state == "ok"


def test_a_processor_is_never_sick_by_its_speed() -> None:
    draw = random.Random(0)
    for _ in range(200):
        found = {
            f"n{number}": [speeds("products", CPU=draw.random()), speeds("disk speed", write=draw.random())]
            for number in range(draw.randint(2, 8))
        }
        assert sick_nodes(compare(nodes(**found))) == []


def test_nodes_that_see_another_folder_are_found_whoever_looked_too_early() -> None:
    shared = nodes(n1=[seen("n1")], n2=[seen("n1", "n2")], n3=[seen("n3")], n4=[seen("n1", "n2", "n4")])
    reports = compare(shared)
    assert sick_nodes(reports) == ["n3"]
    assert "another folder than on n1, n2 and n4" in reports[0].findings[0].value
    # The caller has seen it after all: the others had only looked too early.
    assert sick_nodes(compare(shared, seen_here=["n1", "n2", "n3", "n4"])) == []


def test_of_two_nodes_the_second_has_the_other_folder() -> None:
    assert sick_nodes(compare(nodes(n1=[seen("n1")], n2=[seen("n2")]))) == ["n2"]


def test_what_fails_everywhere_is_no_fault_of_a_node() -> None:
    full = finding("free", "0 bytes free", "fail")
    reports = compare(nodes(n1=[full], n2=[full, finding("gpus", "7 instead of 8", "fail")]))
    assert sick_nodes(reports) == ["n2"]
    assert sick_nodes(nodes(n1=[full])) == []
    assert sick_nodes([*nodes(n1=[full]), silent("n2", "no report")]) == ["n2"]
    two = [*nodes(n1=[full], n2=[full]), silent("n3", "no report"), silent("n4", "no report")]
    assert sick_nodes(two) == ["n3", "n4"]
    assert sick_nodes(nodes(n1=[finding("gpus", "7 instead of 8", "fail")])) == ["n1"]


def test_a_node_without_an_answer_is_sick() -> None:
    reports = compare([*nodes(n1=[finding("torch", "2.13.0", compared="must")]), silent("n2", "no report")])
    assert [report.node for report in reports] == ["n2", "n1"] and sick_nodes(reports) == ["n2"]
