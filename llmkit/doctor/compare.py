"""What only the comparison of nodes shows: which one has other software, is slower, or sees another disk.

A node is compared with the others alone. What most of them have is right; where as many have one thing as
another, what the first node has, since that is where a job's configuration was checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from statistics import median

from llmkit.config.mistakes import listed, printable
from llmkit.doctor.findings import Finding, Report, State

SLOW, SLOWER = 0.6, 0.8
"""Shares of the others' median speed below which a GPU is sick, and below which it is remarked on."""
SLOW_HOST = 0.2
"""The same for processors and disks, remarked on alone: what else runs there may be the reason."""
DEVIATIONS, LEAST_SPREAD = 5.0, 0.02
"""How many robust standard deviations (1.4826 x the median absolute deviation of the others, at least this
share of their median) it must be slower as well."""
OF_ALL = ("disk", "free", "config")
"""What fails for a reason that is not the node's, where there is nobody to compare it with."""
ANSWER = "answer"
"""The finding of a node that has not answered."""


def silent(node: str, why: str) -> Report:
    """The report of a node from which there is none."""
    advice = "look at the node's console; leave it out until the cause is known"
    return Report(node, (Finding(ANSWER, "fail", why, advice),))


def compare(reports: Sequence[Report], seen_here: Collection[str] = ()) -> list[Report]:
    """The reports with what their comparison shows, the worst first.

    seen_here: nodes whose files in the run folder the caller has seen.
    """
    compared = list(reports)
    for name in dict.fromkeys(finding.name for report in reports for finding in report.findings):
        found = {report.node: finding for report in reports if (finding := report.find(name))}
        changed = _compare(found, seen_here)
        compared = [
            replace(
                report,
                findings=tuple(changed.get(report.node, f) if f.name == name else f for f in report.findings),
            )
            for report in compared
        ]
    return sorted(compared, key=_badness)


def sick_nodes(reports: Sequence[Report]) -> list[str]:
    """Nodes that fail where others do not: what all that answer fail at is no fault of a node."""
    answering = [report for report in reports if report.find(ANSWER) is None]
    common = set(OF_ALL)
    if len(answering) > 1:
        common = set.intersection(*({each.name for each in one.of_state("fail")} for one in answering))
    return sorted(
        report.node for report in reports if any(each.name not in common for each in report.of_state("fail"))
    )


def _badness(report: Report) -> tuple[int, int, str]:
    return (
        -sum(1 for _ in report.of_state("fail")), -sum(1 for _ in report.of_state("warn")), report.node
    )  # fmt: skip


def _compare(found: dict[str, Finding], seen_here: Collection[str]) -> dict[str, Finding]:
    """Findings of one name, by node."""
    kinds = {finding.compared for finding in found.values()}
    if "speed" in kinds:
        return _compare_speeds(found)
    if "seen" in kinds:
        return _compare_folders(found, seen_here)
    if "must" in kinds:
        return _compare_values(found, "fail")
    return _compare_values(found, "warn") if "should" in kinds else found


def _compare_values(found: dict[str, Finding], state: State) -> dict[str, Finding]:
    counts = Counter(finding.value for finding in found.values())
    if len(counts) == 1:
        return found
    usual = max(counts, key=lambda value: counts[value])  # of equal ones the first node's
    others = [node for node, finding in found.items() if finding.value == usual]
    return {
        node: finding if finding.value == usual else finding.worse(
            state, f"{listed(others, 4)} {_differing(usual, finding.value, len(others))}",
            "make it the same on all nodes",
        )
        for node, finding in found.items()
    }  # fmt: skip


def _differing(usual: str, other: str, count: int) -> str:
    """What `count` nodes have, or do not have: of long values the words that are not in both."""
    more = [word for word in usual.split() if word not in other.split()]
    less = [word for word in other.split() if word not in usual.split()]
    verb = ("has", "have")[count > 1] if more else ("does not have", "do not have")[count > 1]
    return f"{verb} {printable(' '.join(more or less), 120)}"


def _compare_speeds(found: dict[str, Finding]) -> dict[str, Finding]:
    speeds = {(node, device): speed for node, each in found.items() for device, speed in each.numbers.items()}
    result = dict(found)
    for (node, device), speed in speeds.items():
        others = [
            other for key, other in speeds.items()
            if key != (node, device) and _kind(key[1]) == _kind(device)
        ]  # fmt: skip
        if not others:
            continue
        on_gpu = device != _kind(device)
        state = speed_state(speed, others, on_gpu)
        if state != "ok":
            share = f"{device}: {speed / median(others):.2f} of the median of the others"
            advice = (
                "leave this node out, or find what holds it back" if on_gpu else "see what else runs there"
            )
            result[node] = result[node].worse(state, share, advice)
    return result


def _kind(device: str) -> str:
    """What a device is comparable with: "NVIDIA H100" of "NVIDIA H100 #3"; itself where it has no number."""
    return device.partition(" #")[0]


def speed_state(speed: float, others: Sequence[float], on_gpu: bool) -> State:
    """Whether a speed is out of line with those of the others."""
    middle = median(others)
    spread = max(1.4826 * median(abs(other - middle) for other in others), LEAST_SPREAD * middle)
    if speed > middle - DEVIATIONS * spread:
        return "ok"
    if on_gpu and speed < SLOW * middle:
        return "fail"
    return "warn" if speed < (SLOWER if on_gpu else SLOW_HOST) * middle else "ok"


def _compare_folders(found: dict[str, Finding], seen_here: Collection[str]) -> dict[str, Finding]:
    """Two nodes share a folder if one has seen the other's file: the other may have looked too early."""
    groups = [{node} for node in found]
    for node, finding in found.items():
        groups = _merged(groups, {node, *(finding.numbers.keys() & found.keys())})
    groups = _merged(groups, set(seen_here) & found.keys())
    usual = max(groups, key=len)  # of equal ones that of the first node
    where = listed(sorted(usual), 4)
    return {
        node: finding if node in usual else finding.worse(
            "fail", f"another folder than on {where}",
            "mount the same file system on all nodes, at the same path",
        )
        for node, finding in found.items()
    }  # fmt: skip


def _merged(groups: list[set[str]], nodes: set[str]) -> list[set[str]]:
    """The groups, with those that have any of the nodes made one, in the place of the first of them."""
    touched = [group for group in groups if group & nodes]
    if not touched:
        return groups
    whole = set().union(*touched)
    return [
        whole if group is touched[0] else group
        for group in groups
        if group is touched[0] or group not in touched
    ]
