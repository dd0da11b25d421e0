"""Two ranks of which one is asked to stop, fails, or dies: both end alike, and what can be saved is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from llmkit.checkpoint.read import open as open_checkpoint
from tests.program import events, make_project, rows
from tests.ranks import free_ports, run_ranks

COMMON = ["run.deterministic=false", "model.hidden_dropout=0.0"]
NO_SAVES = ["checkpoint.every_steps=0", "train.max_steps=40"]
CASES: dict[str, dict[str, Any]] = {
    # name: what each rank does, and settings
    "a-step": {"acts": ["nothing", "step"], "overrides": NO_SAVES},
    "both": {"acts": ["step", "step"], "overrides": NO_SAVES},
    "an-evaluation": {
        "acts": ["nothing", "evaluation"],
        "overrides": ["evaluate.every_steps=4", "train.micro_batch_size=1"],
    },
    "a-stall": {"acts": ["nothing", "stall"], "overrides": NO_SAVES},
    "a-build": {"acts": ["nothing", "build"], "overrides": []},
    "a-broken-line": {"acts": ["nothing", "broken line"], "overrides": NO_SAVES},
}


def last_event(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "events.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    make_project(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(project: Path) -> dict[str, list[dict[str, Any]]]:
    """What came out of every case, for each of two ranks; all in one launch."""
    cases = [
        {"name": name, **case, "overrides": [*COMMON, *case["overrides"]]} for name, case in CASES.items()
    ]
    ranks = run_ranks(
        2, "tests.drills.end_cases:ends", joined=False,
        folder=str(project), ports=free_ports(len(cases)), cases=cases,
    )  # fmt: skip
    return {name: [found[index] for found in ranks] for index, name in enumerate(CASES)}


def ended(outcomes: dict[str, list[dict[str, Any]]], name: str) -> tuple[int, int]:
    first, second = outcomes[name]
    assert "Traceback" not in first["errors"] + second["errors"]
    return first["code"], second["code"]


@pytest.mark.drill(
    "D6",
    injection="SIGTERM to one of two ranks, or to both, as step 4 begins",
    expected="both save the same step, at most two later, and end with exit code 75",
)
@pytest.mark.parametrize("case", ["a-step", "both"])
def test_a_signal_to_a_rank_stops_both_at_most_two_steps_later(project, outcomes, case, measured):
    assert ended(outcomes, case) == (75, 75)
    folder = project / "runs" / case
    step = open_checkpoint(folder).step
    assert step in ((5, 6) if case == "a-step" else (4, 5, 6))
    assert last_event(folder)["reason"] == "SIGTERM"
    last = max(row["step"] for row in rows(folder))
    measured("saved after the step of the signal", step - 4, "steps later")
    measured("steps lost", last - step, "")
    assert last == step


@pytest.mark.drill(
    "D9",
    injection="SIGTERM to one of two ranks in an evaluation",
    expected="both give the evaluation up, what was saved before it stays",
)
def test_a_signal_to_one_rank_gives_up_the_evaluation_of_both(project, outcomes):
    assert ended(outcomes, "an-evaluation") == (75, 75)
    folder = project / "runs" / "an-evaluation"
    assert open_checkpoint(folder).step == 4
    assert not [row for row in rows(folder) if "eval_loss" in row]


@pytest.mark.drill(
    "D9",
    injection="SIGTERM to a rank that waits for data that do not come",
    expected="both save the last step",
)
def test_a_signal_to_a_rank_that_waits_for_data_stops_both(project, outcomes):
    assert ended(outcomes, "a-stall") == (75, 75)
    assert open_checkpoint(project / "runs" / "a-stall").step == 3


@pytest.mark.drill(
    "D9",
    injection="SIGTERM to a rank that builds data, before the first step",
    expected="both end with exit code 75",
)
def test_a_signal_to_a_rank_that_builds_data_stops_both(project, outcomes):
    assert ended(outcomes, "a-build") == (75, 75)
    folder = project / "runs" / "a-build"
    assert events(folder) == ["stop"]
    assert not list((folder / "checkpoints").iterdir())


def test_data_that_fail_on_one_rank_end_both_with_one_message_and_everything_saved(project, outcomes):
    assert ended(outcomes, "a-broken-line") == (2, 2)
    folder = project / "runs" / "a-broken-line"
    first, second = outcomes["a-broken-line"]
    assert first["errors"].startswith("llmkit: rank 1 (")
    assert "web.jsonl:17: there is no text in it. Saved runs/a-broken-line/" in first["errors"]
    assert second["errors"] == ""
    assert open_checkpoint(folder).step == 3
    last = last_event(folder)
    assert (last["event"], last["step"], last["lost_steps"]) == ("fault", 3, 0)


@pytest.mark.parametrize(
    ("act", "failing", "reason"),
    [
        ("killed", 0, "ended without reporting an error"),
        ("bug", 1, "ZeroDivisionError: of this rank alone (that rank's output has the traceback)"),
    ],
)
def test_the_other_names_a_rank_that_fails_or_dies_and_says_what_is_lost(project, act, failing, reason):
    """The ranks meet in their launcher, as under torchrun: it stays when one of them goes."""
    acts = [act if rank == failing else "nothing" for rank in range(2)]
    case = {"name": act, "acts": acts, "overrides": [*COMMON, "train.max_steps=40"]}
    launcher = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = run_ranks(
        2, "tests.drills.end_cases:ends", joined=False, may_die=[0, 1], folder=str(project),
        environment={"TORCHELASTIC_USE_AGENT_STORE": "True"}, ports=[launcher.port], cases=[case],
    )  # fmt: skip
    (found,) = ranks[1 - failing]
    assert found["code"] == 1
    assert found["errors"].startswith(f"llmkit: rank {failing} (")
    assert reason in found["errors"]
    assert "Traceback" not in found["errors"]
    assert "2 steps are lost, all since the checkpoint of step 5" in found["log"]
    last = last_event(project / "runs" / act)
    assert (last["event"], last["step"], last["saved_step"], last["lost_steps"]) == ("fault", 7, 5, 2)
    assert reason in last["reason"]
    if act == "bug":
        assert ranks[failing][0]["code"] == "ZeroDivisionError: of this rank alone"
