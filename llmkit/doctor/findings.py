"""What the checks find, as they hand it on: to the table, to a file, to another node."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

State = Literal["ok", "warn", "fail"]
Compared = Literal["", "must", "should", "speed", "seen"]
STATES: tuple[State, ...] = get_args(State)
COMPARED: tuple[Compared, ...] = get_args(Compared)
LONGEST = 2**20
"""Characters of a report that is read: it comes from a file, or from another node."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    state: fail = training will not work here, or not rightly; warn = it may not, or only slowly.
    value: how it is. advice: what to do about it. compared: what is compared with other nodes: `value`, which
    must be the same or should be; or `numbers`, which are speeds of one device each (larger is better; GPUs
    are called "NAME #INDEX"), or have a key for each node that this one has seen.
    """

    name: str
    state: State
    value: str
    advice: str = ""
    compared: Compared = ""
    numbers: dict[str, float] = field(default_factory=dict)

    def worse(self, state: State, value: str, advice: str) -> Finding:
        """This finding with something added that another comparison has shown; its state never improves."""
        return replace(
            self,
            state=max(self.state, state, key=STATES.index),
            value=f"{self.value}; {value}",
            advice="; ".join(part for part in (self.advice, advice) if part),
        )


@dataclass(frozen=True)
class Report:
    """What was found on one node. node: its name, as the scheduler has it."""

    node: str
    findings: tuple[Finding, ...]

    @property
    def state(self) -> State:
        """The worst of its findings."""
        return max((finding.state for finding in self.findings), key=STATES.index, default="ok")

    def find(self, name: str) -> Finding | None:
        """The finding of this name."""
        return next((finding for finding in self.findings if finding.name == name), None)

    def of_state(self, state: State) -> Iterator[Finding]:
        """Its findings in this state."""
        return (finding for finding in self.findings if finding.state == state)

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {"node": self.node, "findings": [asdict(finding) for finding in self.findings]}


def report_from_json(text: str) -> Report:
    """What `Report.to_json` gave, as text. Raises ValueError for anything else, whoever wrote it."""
    if len(text) > LONGEST:
        raise ValueError("it is too long")
    return report_of(json.loads(text))


def report_of(content: Any) -> Report:
    """What `Report.to_json` gave. Raises ValueError for anything else."""
    if not isinstance(content, dict) or not isinstance(content.get("findings"), list):
        raise ValueError("it is no report")
    return Report(_text(content, "node"), tuple(finding_from_json(each) for each in content["findings"]))


def finding_from_json(content: Any) -> Finding:
    """A finding of `Report.to_json`. Raises ValueError for anything else."""
    if not isinstance(content, dict):
        raise ValueError("a finding is no object")
    numbers = content.get("numbers")
    state = next((each for each in STATES if each == content.get("state")), None)
    compared = next((each for each in COMPARED if each == content.get("compared")), None)
    if state is None or compared is None or not isinstance(numbers, dict):
        raise ValueError("a finding is not complete")
    for value in numbers.values():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("a finding has a number that is none")
    name, value, advice = (_text(content, key) for key in ("name", "value", "advice"))
    return Finding(name, state, value, advice, compared, {key: float(each) for key, each in numbers.items()})


def _text(content: dict[str, Any], key: str) -> str:
    if not isinstance(content.get(key), str):
        raise ValueError(f"{key} is missing")
    return str(content[key])
