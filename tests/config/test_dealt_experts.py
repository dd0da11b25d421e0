"""Whether experts can be dealt out as the settings ask, and what is said where they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.load import load
from llmkit.plan import resolve_plan

Write = Callable[..., str]
Refused = Callable[..., str]
MICRO = "train.micro_batch_size=auto"
SIZE = "parallel.expert_parallel_size"
MIXTURE = [
    "model.moe.num_experts=6", "model.moe.num_experts_per_tok=2", "model.moe.moe_intermediate_size=32",
]  # fmt: skip


def test_experts_are_dealt_out_over_ranks_with_other_rows_and_other_tokens(write: Write) -> None:
    sizes = {"tensor_parallel_size": 2, "context_parallel_size": 2, "world_size": 24}
    overrides = [f"parallel.{name}={size}" for name, size in sizes.items()]
    layout = resolve_plan(load(write(), [*MIXTURE, *overrides, f"{SIZE}=3", MICRO])).layout
    assert (layout.data_parallel_size, layout.replicas, layout.copies_of_experts) == (6, 12, 4)
    assert not layout.full_weights


@pytest.mark.parametrize(("context", "least"), [(1, 6), (2, 6), (3, 6), (4, 12)])
def test_without_a_number_of_processes_there_are_enough(write: Write, context: int, least: int) -> None:
    overrides = [f"{SIZE}=6", f"parallel.context_parallel_size={context}"]
    ring = "parallel.context_parallel_form=ring"
    assert resolve_plan(load(write(), [*MIXTURE, *overrides, ring, MICRO])).layout.world_size == least


MISTAKES = [
    # (overrides, what the message says)
    ([f"{SIZE}=2"], f"{SIZE} 2 (command line) does not go with model.moe.num_experts 0 (default)"),
    (
        [*MIXTURE, f"{SIZE}=4"],
        f"{SIZE} 4 (command line) does not divide model.moe.num_experts 6 (command line)\n      each process "
        "holds as many experts; choose one of 1, 2, 3, 6",
    ),
    (
        [*MIXTURE, f"{SIZE}=3", "parallel.world_size=8", "parallel.tensor_parallel_size=2"],
        f"{SIZE} 3 (command line) does not divide the processes: 4 processes see tokens of their own",
    ),
    (
        [*MIXTURE, f"{SIZE}=2", "parallel.world_size=1"],
        f"{SIZE} 2 (command line) does not divide the processes: 1 process sees tokens of their own",
    ),
    (
        [*MIXTURE, f"{SIZE}=2", "parallel.zero_stage=3"],
        f"{SIZE} 2 (command line) does not go with parallel.zero_stage 3 (command line)",
    ),
    (
        [*MIXTURE, f"{SIZE}=2", "parallel.zero_stage=2", "parallel.engine=deepspeed"],
        f'{SIZE} 2 (command line) does not go with parallel.engine "deepspeed" (command line)',
    ),
    (
        [*MIXTURE, f"{SIZE}=2", "parallel.zero_stage=1", "parallel.offload=cpu"],
        f'{SIZE} 2 (command line) does not go with parallel.offload "cpu" (command line)',
    ),
    ([*MIXTURE, f"{SIZE}=2", "train.objective=dpo"], 'does not go with train.objective "dpo" (command line)'),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "what"), MISTAKES)
def test_what_cannot_be_dealt_out_is_named(
    overrides: list[str], what: str, base: str, refused: Refused
) -> None:
    message = refused(base, *overrides)
    assert what in message
    assert "launch" not in message, "no launch file names a stage"
