"""Compiled models, in every engine on two processes: the losses of one that is not, and few graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from llmkit.batch import Batch
from llmkit.config.operators import GENERATED
from llmkit.engine.base import score_rows
from llmkit.engine.build import build_engine
from llmkit.kernels.compiler import graph_breaks
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh
from llmkit.plan import DeviceFacts, plan_for_shape
from llmkit.plan.form_rules import Situation
from llmkit.plan.operators import FORMS
from tests.chosen import chosen, few_at_every_commit
from tests.engine.compiled_cases import CASES, COMPILER
from tests.engine.rank_cases import CONFIG
from tests.engine.test_native import batch_of
from tests.ranks import run_ranks
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

FEW = ("native", "stage 3, recomputed")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    cases = chosen(request, "case")
    results = run_ranks(2, "tests.engine.compiled_cases:compare", style="llama", cases=cases)
    return results[0]


@pytest.mark.parametrize("case", few_at_every_commit(CASES, FEW))
def test_compiled_training_is_that_of_one_process(found, case):
    for row, wanted in zip(found[case]["rows"], found["reference"], strict=True):
        assert row[0] == pytest.approx(wanted[0], rel=1e-6)
        assert row[1] == pytest.approx(wanted[1], rel=2e-5)
    assert found[case]["evaluation"] == pytest.approx([1.0, 1.0], rel=1e-5)
    assert found[case]["again"][0] == pytest.approx(found["native"]["again"][0], rel=1e-5)
    assert found[case]["told"] == [], "nothing failed to compile"


GRAPHS = {
    "native": 3,  # a block, which serves all, the last norm, and the head
    "stage 1": 3,
    "stage 2": 3,
    "native, recomputed": 4,
    "stage 3, recomputed": 6,
    "stage 3, selective": 6,
}
"""Stage 3 without recomputation breaks its graphs where DeepSpeed gathers weights, as often in each block."""


@pytest.mark.parametrize("case", few_at_every_commit(CASES, FEW))
def test_graphs_are_few_and_evaluation_adds_none(found, case):
    assert found[case]["of evaluations"] == found[case]["of training after them"] == 0
    assert found[case]["limits"] == []
    before, after = found[case]["held"]
    assert before == after, "ZeRO-3 lets go of weights in the step after an evaluation, too"
    if case in GRAPHS:
        assert (found[case]["graphs"], found[case]["breaks"]) == (GRAPHS[case], 0)


FORMS_OF_CPU = [("attention", "sdpa")] + [
    (operator, form.name)
    for operator, forms in FORMS.items()
    for form in forms[:-1]
    if form.name not in GENERATED
]


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("operator", "form"), FORMS_OF_CPU)
def test_a_model_with_any_form_is_three_graphs_without_a_break(operator, form, shape):
    plan = plan_for_shape(shape, CONFIG, DeviceFacts())
    situation = Situation(plan.config, shape, plan.layout, plan.precision, DeviceFacts(), compiled=True)
    (rules,) = (each for each in FORMS[operator] if each.name == form)
    if refusal := rules.refuses(situation):
        pytest.skip(refusal)
    torch._dynamo.reset()
    counters.clear()
    told: list[str] = []
    gradients = []
    for compiled in (False, True):
        model = GPT(shape, Operators.of({operator: form}), seed=None)
        model.load_state_dict(random_model(shape).state_dict())
        if compiled:
            model.compile_parts(told.append, COMPILER)
        for _ in range(2):
            model(batch_of(shape, 0)).objective.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert told == []
    assert graph_breaks() == {}
    assert counters["stats"]["unique_graphs"] == 3
    for found, wanted in zip(*gradients, strict=True):
        assert float((found - wanted).norm() / (wanted.norm() + 1e-3)) < 1e-5


def test_what_fails_to_compile_is_reported_once_for_all_layers(monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("no such instruction")

    compile_parts = GPT.compile_parts
    monkeypatch.setattr(GPT, "compile_parts", lambda self, report: compile_parts(self, report, failing))
    monkeypatch.setattr("llmkit.engine.build.use_compile_cache", lambda *_: None)
    torch._dynamo.reset()
    kernels = {"compile": True, "operators": {"attention": "sdpa", "head_loss": "full"}}
    plan = plan_for_shape(LLAMA_STYLE, CONFIG | {"kernels": kernels}, DeviceFacts())
    told: list[str] = []
    engine = build_engine(plan, Mesh(), device=torch.device("cpu"), note=told.append)
    engine.train_step([batch_of(LLAMA_STYLE, 0)], 100)
    assert LLAMA_STYLE.num_hidden_layers > 1
    kinds = sorted(message.removeprefix("torch.compile failed on ").partition(",")[0] for message in told)
    assert len(kinds) == len(set(kinds)) == 3 and "Block" in kinds, told
    assert all("no such instruction" in message for message in told)


def test_scores_of_a_compiled_model_compile_nothing_and_training_goes_on_with_its_code():
    torch._dynamo.reset()
    plain, compiled = random_model(LLAMA_STYLE), random_model(LLAMA_STYLE)
    compiled.compile_parts(pytest.fail, backend="eager")
    batches = [Batch(row[:, :-1], row[:, 1:]) for row in batch_of(LLAMA_STYLE, 3).tokens.split(7, dim=1)]
    compiled(batches[0]).nats.sum().backward()
    before = counters["stats"]["unique_graphs"]
    found, wanted = (score_rows(model, model, batches) for model in (compiled, plain))
    assert before == counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(found.nats, wanted.nats)
    assert torch.equal(found.likeliest, wanted.likeliest)
    compiled(batches[0]).nats.sum().backward()
    assert before == counters["stats"]["unique_graphs"]
