"""Who holds which masters, and weights that are not trained."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.native import NativeEngine
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.precision import PRECISIONS
from tests.engine.rank_cases import BUCKETS, Weights, train
from tests.ranks import run_ranks
from tests.shapes import LLAMA_STYLE, random_model

STAGES = (0, 1, 2)
OPTIMIZER = Optimizer(name="muon", learning_rate=1e-2, eps=1e-5)


def frozen_engine(mesh: Mesh, precision: str, zero_stage: int) -> tuple[NativeEngine, list[str]]:
    """An engine whose model has parameters that require no gradient, and their names."""
    model = random_model(LLAMA_STYLE)
    names = [name for name, _ in model.named_parameters()]
    frozen = [names[0], names[1], names[-2]]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    engine = NativeEngine(
        model, OPTIMIZER, precision=PRECISIONS[precision], gradient_clipping=0.5, mesh=mesh,
        zero_stage=zero_stage, buckets=BUCKETS,
    )  # fmt: skip
    engine.write_pieces(Weights(random_model(LLAMA_STYLE)), 0)
    return engine, frozen


def trained(mesh: Mesh, precision: str, zero_stage: int) -> dict:
    """What three steps did to weights, trained and frozen, and what this rank's pieces are."""
    engine, frozen = frozen_engine(mesh, precision, zero_stage)
    before = {name: weight.detach().clone() for name, weight in engine.weights.items()}
    rows = train(engine, LLAMA_STYLE, mesh, 2, range(3))
    changed = [name for name, weight in engine.weights.items() if not torch.equal(weight, before[name])]
    pieces = list(engine.read_pieces())
    return {
        "rows": rows,
        "frozen": frozen,
        "changed": changed,
        "gradients": [name for name in frozen if engine.weights[name].grad is not None],
        "pieces": [(p.kind, p.name, p.data.numel()) for p in pieces],
        "types": sorted({str(piece.data.dtype) for piece in pieces}),
        "shards": [list(f) for held in engine.masters.held for f in held.fragments],
        "numel": sum(held.tensor.numel() for held in engine.masters.held),
        "trained": sum(w.numel() for name, w in engine.weights.items() if name not in frozen),
        "rounded": _rounded(engine),
        "weights": {name: _digest(weight) for name, weight in engine.weights.items()},
    }


def _rounded(engine: NativeEngine) -> bool:
    """Whether the weights are this rank's masters, rounded."""
    return all(
        torch.equal(
            engine.weights[each.parameter].detach().view(-1)[each.start : each.start + each.numel],
            held.tensor.detach().view(-1)[each.offset : each.offset + each.numel].to(weight_type(engine)),
        )
        for held in engine.masters.held
        for each in held.fragments
    )


def weight_type(engine: NativeEngine) -> torch.dtype:
    return next(iter(engine.weights.values())).dtype


def _digest(weight: Tensor) -> float:
    return float((weight.detach().double().flatten() * torch.arange(1, weight.numel() + 1)).sum())


def on_ranks() -> dict[str, dict]:
    mesh = make_mesh(1)
    cases = [(precision, stage) for precision in PRECISIONS for stage in STAGES]
    return {f"{precision} {stage}": trained(mesh, precision, stage) for precision, stage in cases}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict]]:
    return run_ranks(2, f"{__name__}:on_ranks")


CASES = [f"{precision} {stage}" for precision in PRECISIONS for stage in STAGES]


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_stay_and_the_others_train_as_on_one_process(ranks, case):
    precision, _ = case.split()
    alone = trained(Mesh(), precision, 0)
    for found in (alone, *(each[case] for each in ranks)):
        assert not set(found["frozen"]) & set(found["changed"]) and found["gradients"] == []
        assert len(found["changed"]) == len(found["weights"]) - len(found["frozen"])
        assert found["types"] == ["torch.float32"] and found["rounded"]
        for row, wanted in zip(found["rows"], alone["rows"], strict=True):
            assert row[0] == pytest.approx(wanted[0], rel=1e-6 if precision == "fp32" else 2e-3)
            assert row[1] == pytest.approx(wanted[1], rel=2e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_have_the_same_weights(ranks, case):
    assert ranks[0][case]["weights"] == ranks[1][case]["weights"]


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_are_in_checkpoints_once_and_have_no_moments(ranks, case):
    alone = trained(Mesh(), case.split()[0], 0)
    elements: dict[tuple[str, str], int] = {}
    for found in ranks:
        for kind, name, numel in found[case]["pieces"]:
            elements[kind, name] = elements.get((kind, name), 0) + numel
    assert elements == {(kind, name): numel for kind, name, numel in alone["pieces"]}
    kinds = {kind for kind, name in elements if name == "embedding.weight"}
    assert alone["frozen"][0] == "embedding.weight" and kinds == {"master"}


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_from_stage_1_on_each_rank_has_a_slice_of_each_master(ranks, precision, stage):
    held: dict[str, list[tuple[int, int]]] = {}
    for found in (each[f"{precision} {stage}"] for each in ranks):
        # Beside the slice only what fills up buckets: some at the end of each, and of each parameter.
        assert found["trained"] / 2 <= found["numel"] <= found["trained"] / 2 + 64 * len(found["weights"])
        for name, _, start, numel in found["shards"]:
            held.setdefault(name, []).append((start, start + numel))
    for name, ranges in held.items():
        ordered = sorted(ranges)
        assert ordered[0][0] == 0, name
        assert all(a[1] == b[0] for a, b in pairwise(ordered)), name
    assert any(len(ranges) == 2 for ranges in held.values()), (
        "no parameter begins in one slice and ends in another"
    )
