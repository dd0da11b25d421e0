"""What counts as a difference, and that none is overlooked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from llmkit.parity.cases import Case
from llmkit.parity.compare import Reference, compare, relative_error
from llmkit.parity.run import Trajectory, run_alone
from llmkit.parity.suite import Verdict

CASE = Case("gpt2", 0, 1, 1, False, 1, "none", True, "fp32", "none")


def failures(found: Trajectory, alone: Trajectory, case: Case = CASE) -> list[str]:
    return [each.sort for each in compare(found, Reference(alone, None), case) if each.is_failure]


def test_a_run_equals_itself_and_was_clipped(alone):
    assert failures(alone, alone) == []
    assert min(alone.norms) > 0.5 and len(alone.losses) == 10
    assert sorted(alone.gradients) == sorted(alone.parts) == [0, 4, 9]
    names = set(alone.state["master"])
    assert all(names == set(alone.state[kind]) for kind in ("ema", "first", "exp_avg_sq"))
    assert names == set(alone.gradients[4])


CHANGES: dict[str, Callable[[Trajectory], object]] = {
    "initial loss": lambda t: t.losses.__setitem__(0, t.losses[0] * (1 + 3e-6)),
    "loss": lambda t: t.losses.__setitem__(9, t.losses[9] * (1 - 2e-5)),
    "initial norm": lambda t: t.norms.__setitem__(0, t.norms[0] * (1 + 4e-6)),
    "norm": lambda t: t.norms.__setitem__(5, float("nan")),
    "initial gradient": lambda t: t.gradients[0]["norm.bias"].mul_(1 + 4e-6),
    "gradient": lambda t: t.gradients[4].pop("norm.weight"),
    "part": lambda t: t.parts[4]["updates"][1].mul_(1 + 1e-4),
    "weight": lambda t: t.state["master"]["positions.weight"][0].mul_(1.1),
    "moving average": lambda t: t.state["ema"]["positions.weight"][0].mul_(1.1),
    "first moment": lambda t: t.state["first"]["blocks.0.mlp.up_proj.bias"].add_(float("inf")),
    "second moment": lambda t: t.state["exp_avg_sq"].update(unknown=torch.zeros(1)),
    "replicas": lambda t: t.drifted.append("norm.weight"),
    "memory": lambda t: t.memory.append("rank 0: 8 bytes of masters, planned were 4"),
    "updates": lambda t: setattr(t, "optimizer_steps", 9),
}


@pytest.mark.parametrize("sort", CHANGES)
def test_each_sort_of_difference_is_found(alone, sort):
    found = copy.deepcopy(alone)
    CHANGES[sort](found)
    assert failures(found, alone) == [sort]
    verdict = Verdict(CASE, compare(found, Reference(alone, None), CASE), 1.0)
    assert "FAILED: " + sort in verdict.row() and len(verdict.failures) == 1


def test_the_key_bias_is_left_out_where_it_is_nothing_but_rounding(alone):
    found = copy.deepcopy(alone)
    found.state["master"]["blocks.0.attention.k_proj.bias"].mul_(2.0)
    assert failures(found, alone) == []
    found.state["master"]["blocks.0.attention.q_proj.bias"].mul_(2.0)
    assert failures(found, alone) == ["weight"]


def test_in_bf16_as_much_is_allowed_as_rounding_does(alone):
    case = Case("gpt2", 0, 1, 1, False, 1, "none", True, "bf16", "none")
    rounded = run_alone("gpt2", True, "bf16", torch.device("cpu"))
    assert all(not each.is_failure for each in compare(rounded, Reference(rounded, alone), case))
    assert all(not each.is_failure for each in compare(alone, Reference(rounded, alone), case))
    wrong = copy.deepcopy(rounded)
    wrong.gradients[0]["norm.weight"].mul_(1.2)
    wrong.losses[3] *= 1.003
    assert [e.sort for e in compare(wrong, Reference(rounded, alone), case) if e.is_failure] == [
        "loss",
        "initial gradient",
    ]


@pytest.mark.parametrize(("share", "wrong"), [(1.4, []), (1.6, ["gradient"]), (3.1, ["norm", "gradient"])])
def test_in_fp8_a_norm_may_differ_by_more_than_a_tensor(alone, share, wrong):
    case = Case("gpt2", 0, 1, 1, False, 1, "none", True, "fp8", "none")

    def changed(trajectory: Trajectory, step: int, by: float) -> Trajectory:
        found = copy.deepcopy(trajectory)
        found.norms[step] *= 1.0 + by
        for gradient in found.gradients[step].values():
            gradient.mul_(1.0 + by)
        return found

    rounded = changed(alone, 4, by=0.01)
    found = changed(rounded, 9, by=0.01 * share)
    assert [each.sort for each in compare(found, Reference(rounded, alone), case) if each.is_failure] == wrong


def test_errors_are_relative_to_the_whole_tensor():
    assert relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) == 0.0
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0.0
    assert relative_error(torch.ones(3), torch.zeros(3)) == float("inf")
    assert relative_error(torch.tensor([0.0, 0.1]), torch.zeros(2), floor=10.0) == pytest.approx(0.01)
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]), floor=1.0) == pytest.approx(0.1)


def test_a_small_gradient_is_measured_against_a_share_of_the_whole(alone):
    found = copy.deepcopy(alone)
    sizes = {n: float(g.norm()) for n, g in alone.gradients[0].items() if not n.endswith("k_proj.bias")}
    small = min(sizes, key=sizes.__getitem__)
    assert 0.0 < sizes[small] < 0.005
    found.gradients[0][small] *= 1 + 2.5e-6
    assert failures(found, alone) == []
    found.gradients[0][small] *= 1 + 1e-4
    assert failures(found, alone) == ["initial gradient"]
