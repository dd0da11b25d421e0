"""Tasks on several processes, in every engine, against the same on one process."""

from __future__ import annotations

import pytest
import torch

from llmkit.evaluation.command import evaluate_by_tasks
from llmkit.evaluation.harness import Tasks, figures, run_tasks
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.evaluation.team import Lead
from llmkit.inference import evaluate_weights
from llmkit.parallel.mesh import Mesh
from llmkit.weights import open_weights
from tests.evaluation import rank_cases, toys
from tests.program import train
from tests.ranks import run_ranks

CASES = "tests.evaluation.rank_cases"
LAYOUTS = [
    ["native 1", 2, {"sequence_parallel": True}],
    ["deepspeed 3", 2, {}],
    ["deepspeed 3", 1, {"adapters": 4}],
    ["native 1", 1, {"context_parallel_size": 2}],
    ["deepspeed 3", 2, {"context_parallel_size": 2, "context_parallel_form": "ring"}],
]


@pytest.fixture
def alone(tmp_path) -> dict[str, float]:
    """The figures that one process finds."""
    toys.make_tasks(tmp_path / "tasks")
    scorer = Scorer.of_model(toys.model(), HubText(toys.tokenizer()), Mesh(), 400)
    tasks = Tasks(toys.NAMES, str(tmp_path / "tasks"), limit=5)
    return figures(run_tasks(tasks, Lead(scorer), {}, quiet=True))


def test_figures_in_engines_of_four_processes_equal_those_of_one(alone, tmp_path):
    found = run_ranks(4, f"{CASES}:in_engines", folder=str(tmp_path / "tasks"), layouts=LAYOUTS)
    engine, plan = rank_cases.engine_of("native 0", Mesh())
    losses = [rank_cases.step(engine, Mesh(), plan) for _ in range(2)]
    for number, layout in enumerate(LAYOUTS):
        first, *others = [rank[number] for rank in found]
        assert first["figures"] == pytest.approx(alone, rel=1e-5), layout
        assert all(other["figures"] is None and other["batches"] == first["batches"] for other in others)
        for rank in (first, *others):
            trained = losses[: 1 if "adapters" in layout[2] else 2]  # adapters learn something else
            torch.testing.assert_close(
                torch.tensor(rank["losses"][: len(trained)]), torch.tensor(trained), rtol=1e-5, atol=0
            )


def test_figures_of_a_run_on_two_processes_equal_those_of_one(project):
    assert train("train.max_steps=2") == 0
    toys.make_tasks(project / "tasks", answer_tokens=6)
    arguments = {"path": str(project / "runs" / "tiny"), "folder": str(project / "tasks")}
    found = run_ranks(2, f"{CASES}:of_weights", **arguments, sizes=[1, 2])
    tasks = Tasks(toys.NAMES, arguments["folder"], 0, 3)
    wanted = evaluate_by_tasks(open_weights(project / "runs" / "tiny"), tasks, Mesh(), "fp32")
    assert wanted is not None
    for each in found[0]:
        assert each == pytest.approx(figures(wanted), rel=1e-5)
    assert found[1] == [None, None]
    text = str(project / "corpus" / "001.txt")
    losses = run_ranks(2, f"{CASES}:of_held_out", path=arguments["path"], other=text, sizes=[1, 2])
    weights = open_weights(project / "runs" / "tiny")
    alone = [evaluate_weights(weights, "fp32", data, print) for data in (None, text)]
    for each in (*losses[0], *losses[1]):
        assert each == pytest.approx([loss.loss for loss in alone], rel=1e-6)


def test_an_error_of_rank_zero_is_raised_on_all():
    first, second = run_ranks(2, f"{CASES}:errors")
    assert first == ["UserError: there is no such task", "ZeroDivisionError: division by zero"]
    assert second[0] == first[0] and second[1].startswith("RunFault: ZeroDivisionError: division by zero")
