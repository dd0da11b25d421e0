"""Two ranks under torchrun of which one dies or hangs: it is named, with its stacks, and the run ends."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist

from llmkit.end_file import own_host, read_end
from tests.drills.watchdog_cases import SLOWER
from tests.program import make_project, recorded
from tests.ranks import run_ranks

CASES = {"d1": ("killed", 1), "d2": ("killed", 0), "d10": ("stopped", 1), "d11": ("gil", 1),
         "d12": ("another exchange", 1), "asleep": ("sleeps", 0), "d13": ("slow", 1)}  # fmt: skip
"""The name of each: what happens, and to which rank."""


EVENTS = ("dead_rank", "hung_rank", "stalled", "straggler")
FAULTS = [name for name in CASES if name != "d13"]
HUNG = "the rank and its stacks, and those of the others; the run ends"


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
        (event,) = [row for name in EVENTS for row in recorded(name, run)]
        seconds = datetime.fromisoformat(event["time"]).timestamp()
        seconds -= float((folder / f"{name}.began").read_text())
        outcomes[name] = Outcome(run, found[2 * number : 2 * number + 2], event, seconds)
    return outcomes


def drill(number: str, injection: str, expected: str, *values: str) -> Any:
    """The values of a case that performs a drill."""
    mark = pytest.mark.drill(number, injection=injection, expected=expected)
    return pytest.param(number.lower(), *values, marks=mark)


@pytest.mark.parametrize(
    "name",
    [
        drill("D1", "kill -9 of rank 1 in step 8", "the rank is named to the other, in 5 s; the run ends"),
        drill("D2", "kill -9 of rank 0 in step 8", "the rank is named to the other, in 5 s; the run ends"),
    ],
)
def test_a_rank_that_is_killed_is_named(outcomes, name, measured):
    """With its signal, too, where its launcher does not wait for it at once, as this one does."""
    case, failing = outcomes[name], CASES[name][1]
    measured("named after", case.seconds, "s")
    assert (case.event["event"], case.event["ranks"], case.event["step"]) == ("dead_rank", [failing], 7)
    assert case.event["reason"].startswith(f"rank {failing} (")
    assert "ended " in case.event["reason"] and "in step 8" in case.event["reason"]
    other = case.ranks[1 - failing]
    assert other["code"] == 1 and f"llmkit: {case.event['reason']}. Run the same command" in other["errors"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        drill("D10", "SIGSTOP of rank 1 in step 8", HUNG, "is stopped (SIGSTOP)"),
        drill("D11", "rank 1 holds the GIL in step 8, in C", HUNG, "hangs in hold_the_gil"),
        ("asleep", "hangs in"),
    ],
)
def test_a_rank_that_hangs_is_named_and_the_stacks_of_all_are_saved(outcomes, name, what, measured):
    case, failing = outcomes[name], CASES[name][1]
    measured("named after", case.seconds, "s")
    assert (case.event["event"], case.event["ranks"]) == ("hung_rank", [failing])
    assert case.event["reason"].startswith(f"rank {failing} (") and what in case.event["reason"]
    assert f"rank {1 - failing} waits in " in case.event["reason"]
    assert "watchdog_cases.py" in case.stack(failing) and "in fit" in case.stack(1 - failing)
    assert case.ranks[1 - failing]["code"] == 1


@pytest.mark.parametrize(
    "name", [drill("D12", "rank 1 waits in another exchange than rank 0", "exchange and place of each rank")]
)
def test_exchanges_that_do_not_match_are_named_with_the_rank(outcomes, name, measured):
    measured("named after", outcomes[name].seconds, "s")
    reason = outcomes[name].event["reason"]
    assert "rank 1 waits in recv (torch/distributed/distributed_c10d.py" in reason
    assert "watchdog_cases.py" in reason and "rank 0 waits in " in reason


@pytest.mark.parametrize("name", FAULTS)
def test_the_batch_script_learns_of_it(outcomes, name):
    case = outcomes[name]
    end = read_end(case.folder.parents[1] / f"{name}.json")
    assert end is not None and (end.end, end.reason) == ("fault", case.event["reason"])
    assert (end.step, end.saved_step, end.first_step) == (7, 5, 0)
    assert list(end.hosts) == ([own_host({})] if name != "d12" or case.event["ranks"] else [])


@pytest.mark.parametrize(
    "name", [drill("D13", "each step of rank 1 takes 0.2 s longer", "rank 1 is named; the run goes on")]
)
def test_a_slow_rank_is_named_and_the_run_goes_on(outcomes, name, measured):
    case = outcomes[name]
    measured("named after", case.seconds, "s with the start")
    assert (case.event["event"], case.event["rank"]) == ("straggler", 1)
    assert case.event["seconds"] > SLOWER and case.event["seconds"] > 1.5 * case.event["median"]
    end = read_end(case.folder.parents[1] / f"{name}.json")
    assert end is not None and end.end == "stopped"  # on request, when that was on record
    assert [each["code"] for each in case.ranks] == [0, 0]
    log = (case.folder / "logs" / "rank-00000.log").read_text()
    assert f"rank 1 ({own_host({})}) is a straggler" in log
