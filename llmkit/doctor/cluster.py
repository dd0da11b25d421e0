"""`srun llmkit doctor`: a task a node checks it, and that of the first node compares them.

What one node alone cannot show is asked of all: clocks, who reaches whom, locks, collectives. Each question
has a limit, so that a node that hangs or dies is a row of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from llmkit.config.mistakes import listed
from llmkit.doctor.collectives import collectives_finding, join_seconds
from llmkit.doctor.compare import silent
from llmkit.doctor.disk import KEPT_OUT, NO_LOCKS, OFF_SECONDS, locked_file
from llmkit.doctor.findings import Finding, Report, report_of
from llmkit.doctor.meeting import ANSWER_SECONDS, COME_SECONDS, Lead
from llmkit.doctor.participant import Participant
from llmkit.doctor.reach import to_leave_out
from llmkit.doctor.scope import Scope
from llmkit.doctor.step import Step
from llmkit.ports import free_port

MORE_SECONDS = 15.0
"""Beyond the limit that a node itself keeps to."""

Found = dict[str, Finding]


def reports_of_all(
    step: Step, own: Participant, scope: Scope, come_seconds: float = COME_SECONDS
) -> list[Report]:
    """The reports of all nodes of a step, in its order."""
    lead = Lead(step, own)
    try:
        lead.gather(come_seconds)
        reports = lead.ask("check", dict.fromkeys(lead.nodes), scope.seconds + MORE_SECONDS, report_of)
        further: list[Found] = [_clocks(lead), *_reach_and_collectives(lead, step, scope)]
        further.append(_locks(lead, Path(scope.folder)))
    finally:
        lead.close()
    result = []
    for node in step.nodes:
        known = reports[node].findings if node in reports else ()
        known += tuple(found[node] for found in further if node in found)
        if node in lead.silent:
            known += silent(node, lead.silent[node]).findings
        result.append(Report(node, known))
    return result


def _clocks(lead: Lead) -> Found:
    own, *others = lead.nodes
    offsets = {own: (0.0, 0.0), **{node: found for node in others if (found := lead.offset(node))}}
    return clock_findings(offsets)


def clock_findings(offsets: Mapping[str, tuple[float, float]]) -> Found:
    """offsets: seconds that each node's clock is ahead of the same one, and how uncertain that is."""
    middle, of_middle = (median(each) for each in zip(*offsets.values(), strict=True))
    result = {}
    for node, (offset, uncertain) in offsets.items():
        value = f"{offset - middle:+.3f} s from the others', measured to {uncertain:.3f} s"
        off = abs(offset - middle) - uncertain - of_middle > OFF_SECONDS
        advice = "start chrony or ntpd there: times in logs will not fit together" if off else ""
        result[node] = Finding("clocks", "warn" if off else "ok", value, advice)
    return result


def _reach_and_collectives(lead: Lead, step: Step, scope: Scope) -> list[Found]:
    """Who reaches whom, and collectives of those that reach each other."""
    answers = lead.ask(
        "reach", {node: lead.addresses_for(node) for node in lead.nodes}, ANSWER_SECONDS, _names
    )
    pairs = {frozenset((node, other)) for node, others in answers.items() for other in others}
    reach = reach_findings(list(answers), pairs, [node for node in step.nodes if node in answers])
    left = [node for node in answers if reach[node].state != "fail"]
    return [reach, *([_collectives(lead, left, scope.seconds)] if len(left) > 1 else [])]


def reach_findings(nodes: list[str], pairs: set[frozenset[str]], order: list[str]) -> Found:
    """pairs: of nodes that cannot connect to each other, in one direction or both. order: of the nodes."""
    out = to_leave_out(pairs, order)
    result = {}
    for node in nodes:
        missed = sorted(other for pair in pairs if node in pair for other in pair - {node})
        if missed:
            advice = "check cables, routes and firewall between these nodes"
            value = f"no connection with {listed(missed, 8)}"
            result[node] = Finding("reach", "fail" if node in out else "warn", value, advice)
        else:
            result[node] = Finding("reach", "ok", f"all of {len(nodes) - 1} others")
    return result


def _collectives(lead: Lead, nodes: list[str], seconds: float) -> Found:
    ready = lead.ask("ready", dict.fromkeys(nodes, seconds), seconds + MORE_SECONDS, int)
    counts = {node: count for node, count in ready.items() if count}
    result = {
        node: Finding(
            "collectives", "warn", "takes no part: its processes did not get ready in time", "check again"
        )
        for node in ready.keys() - counts.keys()
    }
    first, port, world, contents = 0, free_port(), sum(counts.values()), {}
    leader = lead.nodes[0]
    for node, count in counts.items():
        address = lead.addresses_for(node)[leader][0] if node != leader else lead.own_address
        contents[node] = (address, port, first, world)
        first += count
    where = f"over {world} processes on {len(counts)} nodes"
    return result | lead.ask(
        "join",
        contents,
        2 * join_seconds(world) + MORE_SECONDS,
        lambda found: collectives_finding(found, where),
    )


def _names(answer: list[str]) -> list[str]:
    return [str(name) for name in answer]


def _locks(lead: Lead, folder: Path) -> Found:
    """Whether a lock of the first node keeps the others out."""
    own, *others = lead.nodes
    try:
        with locked_file(folder) as path:
            answers = lead.ask("lock", dict.fromkeys(others, str(path)), ANSWER_SECONDS, str)
    except OSError:  # its own check says so
        return {}
    result = {}
    for node, answer in answers.items():
        well = answer == KEPT_OUT
        value = f"a lock of {own} keeps it out" if well else f"a lock of {own}: {answer}"
        result[node] = Finding("locks of nodes", "ok" if well else "warn", value, "" if well else NO_LOCKS)
    return result
