"""Two ranks under torchrun of which one dies or hangs: it is named, with its stacks, and the run ends."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist

from llmkit.end_file import own_host, read_end
from tests.program import make_project, recorded
from tests.ranks import run_ranks

CASES = {"d1": ("killed", 1), "d2": ("killed", 0), "d10": ("stopped", 1), "d11": ("gil", 1),
         "d12": ("another exchange", 1), "asleep": ("sleeps", 0)}  # fmt: skip
"""The name of each: what happens, and to which rank."""


class Outcome(NamedTuple):
    """What came out of a case. ranks: what each gave back; seconds: from the act to the event."""

    folder: Path
    ranks: list[Any]
    event: dict[str, Any]
    seconds: float

    def stack(self, rank: int) -> str:
        return (self.folder / self.event["stacks"] / f"rank-{rank:05d}.txt").read_text()


@pytest.fixture(
    scope="module", params=[3.0, pytest.param(None, marks=pytest.mark.exhaustive)], ids=["3 s", "learned"]
)
def outcomes(request, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All cases at once, as they mostly wait; with a limit of three seconds a step, and with that learned."""
    folder = tmp_path_factory.mktemp("watched")
    make_project(folder)
    overrides = ["run.deterministic=false", "faults.watchdog=true", "train.max_steps=4000"]
    if request.param is not None:
        overrides.append(f"faults.max_step_seconds={request.param}")
    cases = [
        {"name": name, "act": act, "rank": rank, "overrides": overrides}
        for name, (act, rank) in CASES.items()
    ]
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in cases]
    found = run_ranks(
        2 * len(cases), "tests.drills.watchdog_cases:watched", joined=False, may_die=range(2 * len(cases)),
        environment={"TORCHELASTIC_USE_AGENT_STORE": "True"},
        folder=str(folder), ports=[store.port for store in stores], cases=cases,
    )  # fmt: skip
    outcomes = {}
    for number, name in enumerate(CASES):
        run = folder / "runs" / name
        (event,) = recorded("dead_rank", run) + recorded("hung_rank", run)
        seconds = datetime.fromisoformat(event["time"]).timestamp()
        seconds -= float((folder / f"{name}.began").read_text())
        outcomes[name] = Outcome(run, found[2 * number : 2 * number + 2], event, seconds)
    return outcomes


@pytest.mark.parametrize("name", ["d1", "d2"])
def test_a_rank_that_is_killed_is_named(outcomes, name):
    """With its signal, too, where its launcher does not wait for it at once, as this one does."""
    case, failing = outcomes[name], CASES[name][1]
    assert (case.event["event"], case.event["ranks"], case.event["step"]) == ("dead_rank", [failing], 7)
    assert case.event["reason"].startswith(f"rank {failing} (")
    assert "ended " in case.event["reason"] and "in step 8" in case.event["reason"]
    other = case.ranks[1 - failing]
    assert other["code"] == 1 and f"llmkit: {case.event['reason']}. Run the same command" in other["errors"]


@pytest.mark.parametrize(
    ("name", "what"), [("d10", "is stopped (SIGSTOP)"), ("d11", "hangs in hold_"), ("asleep", "hangs in")]
)
def test_a_rank_that_hangs_is_named_and_the_stacks_of_all_are_saved(outcomes, name, what):
    case, failing = outcomes[name], CASES[name][1]
    assert (case.event["event"], case.event["ranks"]) == ("hung_rank", [failing])
    assert case.event["reason"].startswith(f"rank {failing} (") and what in case.event["reason"]
    assert f"rank {1 - failing} waits in " in case.event["reason"]
    assert "watchdog_cases.py" in case.stack(failing) and "in fit" in case.stack(1 - failing)
    assert case.ranks[1 - failing]["code"] == 1


def test_exchanges_that_do_not_match_are_named_with_the_rank(outcomes):
    reason = outcomes["d12"].event["reason"]
    assert "rank 1 waits in recv (torch/distributed/distributed_c10d.py" in reason
    assert "watchdog_cases.py" in reason and "rank 0 waits in " in reason


@pytest.mark.parametrize("name", CASES)
def test_the_batch_script_learns_of_it(outcomes, name):
    case = outcomes[name]
    end = read_end(case.folder.parents[1] / f"{name}.json")
    assert end is not None and (end.end, end.reason) == ("fault", case.event["reason"])
    assert (end.step, end.saved_step, end.first_step) == (7, 5, 0)
    assert list(end.hosts) == ([own_host({})] if name != "d12" or case.event["ranks"] else [])


def test_it_is_noticed_in_time(outcomes, request):
    """Not how fast this machine is: the limits are those of a hang that nobody noticed."""
    found = {name: round(case.seconds, 1) for name, case in outcomes.items()}
    assert all(0.0 < seconds < 600.0 for seconds in found.values()), json.dumps(found)
