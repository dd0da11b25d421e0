"""The place of a task in a step, from SLURM's variables."""

from __future__ import annotations

import pytest

from llmkit.doctor import step
from llmkit.doctor.step import TRIED, Step, step_of
from llmkit.errors import RunFault

VARIABLES = {
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0",
    "SLURM_NODEID": "0", "SLURMD_NODENAME": "n2",
}  # fmt: skip


def test_a_task_of_several_nodes_knows_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "hostnames", lambda nodes: ["n1", "n2"] if nodes == "n[1-2]" else [])
    assert step_of(VARIABLES) == Step("17.0", ("n1", "n2"), 1)
    assert step_of({}) is None and step_of(VARIABLES | {"SLURM_STEP_NUM_NODES": "1"}) is None
    with pytest.raises(RunFault, match="does not tell the names of the 3 nodes"):
        step_of(VARIABLES | {"SLURM_STEP_NUM_NODES": "3"})
    with pytest.raises(RunFault, match="one of them n7"):
        step_of(VARIABLES | {"SLURMD_NODENAME": "n7"})


def test_steps_that_share_a_node_begin_at_other_ports() -> None:
    steps = [Step(name, (), 0) for name in ("17.0", "17.1", "18.0", "12_3.interactive")]  # one has no numbers
    assert len({step.ports[0] for step in steps}) == len(steps)
    assert {len(step.ports) for step in steps} == {TRIED}
