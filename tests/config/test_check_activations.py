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


CONTEXT = ["parallel.context_parallel_size=2", "parallel.zero_stage=3"]


def test_ranks_with_other_numbers_of_tiles_are_refused_at_stage_3(
    base: str, write: Write, refused: Write
) -> None:
    uneven = [*CONTEXT, "data.sequence_length=257", TILE]  # pieces of 129 and 128
    assert "into 2 tiles on some ranks and 3 on others" in refused(base, *uneven)
    for allowed in ("parallel.zero_stage=2", "kernels.mlp_tile=100", "data.sequence_length=258"):
        load(write(), [*uneven, allowed])


def test_many_tiles_in_bf16_are_noted(write: Write) -> None:
    length, bf16 = "data.sequence_length=800", "train.precision=bf16"

    def notes(*overrides: str) -> list[str]:
        loaded = load(write(), [length, *overrides])
        return [each for each in loaded.remarks if "summed in bf16" in each]

    (note,) = notes(bf16, "kernels.mlp_tile=20")
    assert "makes 40 tiles" in note and "A tile of 50 or more" in note
    assert not notes(bf16, "kernels.mlp_tile=50") and not notes("train.precision=fp32", "kernels.mlp_tile=20")
    assert notes(bf16, "kernels.mlp_tile=20", CONTEXT[0])
    assert not notes(bf16, "kernels.mlp_tile=25", CONTEXT[0])


def test_the_host_is_another_memory_on_a_gpu_alone(write: Write) -> None:
    loaded = load(write(), [TILE, OFFLOAD, FULL])
    facts = {"cpu": DeviceFacts(), "cuda": DeviceFacts("cuda", True, 2**36, capability=(9, 0), triton=True)}
    found = {
        kind: resolve_plan(loaded, Known(1, device=device)).layout.offload_activations
        for kind, device in facts.items()
    }
    assert found == {"cpu": False, "cuda": True}
