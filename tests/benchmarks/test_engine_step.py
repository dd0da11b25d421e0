"""The engines side by side: the same losses, and as many figures as were asked for."""

from __future__ import annotations

import pytest

from benchmarks.engine_step import CASES, main, measure
from llmkit.parallel.mesh import make_mesh
from tests.ranks import run_ranks

NATIVE = [name for name in CASES if not name.startswith("deepspeed")]


def measured() -> dict[str, tuple[list[float], list[list[float]]]]:
    runners = measure(NATIVE, "toy", make_mesh(1), rounds=2, steps=1)
    return {name: ([float(loss) for loss in each.losses], each.rounds) for name, each in runners.items()}


@pytest.mark.exhaustive
def test_all_cases_of_an_optimizer_train_alike():
    for found in run_ranks(2, f"{__name__}:measured"):
        for name, (losses, rounds) in found.items():
            assert losses == pytest.approx(found["ddp-muon" if "muon" in name else "ddp"][0], rel=1e-5), name
            assert losses[-1] < losses[0] and [len(seconds) for seconds in rounds] == [1, 1]


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["ddp", "fsdp"])
    assert "unknown cases: fsdp" in capsys.readouterr().err
