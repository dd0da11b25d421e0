"""What tiles of the MLP and inputs of blocks on the host do not go with is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.load import load
from llmkit.plan import DeviceFacts, resolve_plan
from llmkit.plan.plan import Known

Write = Callable[..., str]
TILE, OFFLOAD = "kernels.mlp_tile=64", "parallel.offload_activations=true"
FULL = "parallel.activation_checkpointing=full"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([OFFLOAD], "parallel.offload_activations true (command line) does not go with parallel.act"),
        ([TILE, "parallel.activation_checkpointing=selective"], "kernels.mlp_tile 64 (command line) does"),
        ([TILE, "train.precision=fp8"], 'does not go with train.precision "fp8"'),
        (
            [TILE, "model.moe={num_experts: 4, num_experts_per_tok: 2}"],
            "does not go with model.moe.num_experts 4",
        ),
    ],
)
def test_what_does_not_go_together_is_named(
    base: str, refused: Write, overrides: list[str], says: str
) -> None:
    assert says in refused(base, *overrides)


def test_the_host_is_another_memory_on_a_gpu_alone(write: Write) -> None:
    loaded = load(write(), [TILE, OFFLOAD, FULL])
    facts = {"cpu": DeviceFacts(), "cuda": DeviceFacts("cuda", True, 2**36, capability=(9, 0), triton=True)}
    found = {
        kind: resolve_plan(loaded, Known(1, device=device)).layout.offload_activations
        for kind, device in facts.items()
    }
    assert found == {"cpu": False, "cuda": True}
