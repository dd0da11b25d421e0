"""Parameters that are not trained, or not by every batch, under every engine against one process."""

from __future__ import annotations

import pytest
import torch

from llmkit.batch import Batch
from llmkit.engine.base import StepSums
from llmkit.engine.used import SameUse, used_leaves
from llmkit.errors import UserError
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh
from tests.ranks import run_ranks
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

CASES = "tests.engine.irregular_cases"
NATIVE = [{"zero_stage": stage, "engine": "native"} for stage in (0, 1, 2)]
DEEPSPEED = [{"zero_stage": stage, "engine": "deepspeed"} for stage in (1, 2, 3)]


def test_frozen_unused_and_strided_parameters_on_three_ranks_equal_one_process():
    """Weights that take no part in a step have a gradient of zero, whatever the layout: moments decay."""
    cases = [
        *({"model": {"strided": True}, "parallel": parallel} for parallel in (NATIVE[1], DEEPSPEED[0])),
        *({"model": {"frozen": True}, "parallel": parallel} for parallel in NATIVE),
        *({"model": {"unused": True}, "parallel": parallel} for parallel in (*NATIVE, *DEEPSPEED)),
        *({"model": {"rare": True}, "parallel": parallel} for parallel in NATIVE),
    ]
    for found in run_ranks(3, f"{CASES}:compare", cases=cases):
        for case, each in zip(cases, found, strict=True):
            for row, wanted in zip(each["rows"][1], each["rows"][0], strict=True):
                assert row == pytest.approx(wanted, rel=2e-6), case
            assert each["worst"][1] < 1e-5, (case, each["worst"])
            assert each["updates"] == [4, 4], case


def test_what_ranks_would_exchange_unlike_is_refused_on_all_before_it_is():
    cases = [
        {"model": {"rare": True}, "parallel": DEEPSPEED[0]},
        {"model": {"rare": True, "counted": True}, "parallel": NATIVE[0]},
    ]
    messages = run_ranks(3, f"{CASES}:refused", cases=cases)
    assert all(each == messages[0] for each in messages)
    uses, extras = messages[0]
    assert "uses expert.0.bias, expert.0.weight, expert.1.bias and expert.1.weight for some" in uses
    assert "parallel.engine=native" in uses
    assert "names of LossSum.extras, the same for every batch: rare rows on rank 0" in extras


def test_leaves_are_found_behind_any_function_and_only_where_they_take_part():
    a, b, c = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    result = (torch.utils.checkpoint.checkpoint(torch.sin, a, use_reentrant=False) * b.detach()).sum() + c[0]
    assert used_leaves(result) == {id(a), id(c)}


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
def test_every_batch_uses_every_parameter_of_our_model(shape, recomputed):
    model = GPT(shape, activation_checkpointing=recomputed)
    tokens = torch.zeros((1, 4), dtype=torch.long)
    assert model.uses_every_parameter
    assert used_leaves(model(Batch(tokens, tokens)).objective) >= {id(p) for p in model.parameters()}


def test_use_must_not_change_between_batches():
    parameters = {name: torch.nn.Parameter(torch.ones(3)) for name in ("one", "other")}
    use = SameUse(parameters, Mesh())
    use.check(parameters["one"].sum())
    use.check(parameters["one"].sum() * 2)
    with pytest.raises(UserError, match="uses other for some batches only"):
        use.check(parameters["one"].sum() + parameters["other"].sum())


def test_names_of_extras_must_not_change_between_steps():
    sums = StepSums(Mesh())
    for names in (("b", "a"), ("a", "b")):
        sums.start(torch.device("cpu"))
        sums.extras = dict.fromkeys(names, torch.ones((), dtype=torch.float64))
        assert set(sums.over_ranks().extras) == {"a", "b"}
    sums.start(torch.device("cpu"))
    with pytest.raises(UserError, match=r"had the names \(a, b\), in this step they are \(\)"):
        sums.over_ranks()
