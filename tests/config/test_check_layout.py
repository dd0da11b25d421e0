"""Sizes, batches and layouts that cannot be are found from the settings, all at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.derive import accumulation_steps, fitting_ranks
from llmkit.config.load import check_again, load
from llmkit.config.settings import Facts
from llmkit.errors import UserError

Write = Callable[..., str]
Refused = Callable[..., str]
RefusedForOne = Callable[[list[str], str], None]

CONTRADICTIONS = [
    # (overrides, what the message says)
    (
        ["model.hidden_size=66"],
        "model.hidden_size 66 (command line) is not divisible by model.num_attention_heads 4 (c.yaml:7)",
    ),
    (
        ["model.num_key_value_heads=3"],
        "model.num_attention_heads 4 (c.yaml:7) is not divisible by model.num_key_value_heads 3",
    ),
    (
        ["model.head_dim=15"],
        'model.head_dim 15 (command line) is odd, but model.position_embedding "rope" (default)',
    ),
    (
        ["model.hidden_size=60"],
        "model.hidden_size 60 (command line) and model.num_attention_heads 4 (c.yaml:7) make heads",
    ),
    (
        ["model.max_position_embeddings=64"],
        "data.sequence_length 128 (c.yaml:18) is longer than model.max_position_embeddings 64",
    ),
    (
        ["model.head_initializer_range=0"],
        "model.head_initializer_range 0.0 (command line) does not go with model.tie_word_embeddings true",
    ),
    (
        ["model.vocab_size=511"],
        "model.vocab_size 511 (command line) is smaller than data.tokenizer.vocab_size 512 (c.yaml:12)",
    ),
    (["model.vocab_size=4095", "data.tokenizer.vocab_size=null"], "null (command line), which means 4096"),
    (
        ["model.vocab_size=256", "data.tokenizer={type: bytes, vocab_size: null}"],
        'model.vocab_size 256 (command line) is smaller than the 257 tokens of data.tokenizer.type "bytes"',
    ),
    (
        ["train.max_steps=null"],
        "one of train.max_steps null (command line) and train.max_minutes null (default) must be given",
    ),
    (
        ["train.micro_batch_size=5"],
        "train.micro_batch_size 5 (command line) does not divide train.global_batch_size 16 (c.yaml:21), nor",
    ),
    (
        ["optimizer.name=muon", "optimizer.momentum_warmup_steps=9", "optimizer.momentum=0.8"],
        "optimizer.momentum_start 0.85 (default) is larger than optimizer.momentum 0.8 (command line)",
    ),
    (
        ["parallel.world_size=6", "parallel.tensor_parallel_size=4"],
        "parallel.world_size 6 (command line) is not a multiple of parallel.tensor_parallel_size 4",
    ),
    (
        ["parallel.sequence_parallel=true"],
        "parallel.sequence_parallel true (command line) needs parallel.tensor_parallel_size 1 (default)",
    ),
    (
        ["parallel.offload=cpu", "parallel.zero_stage=0"],
        'parallel.offload "cpu" (command line) does not go with parallel.zero_stage 0 (command line)',
    ),
    (
        ["parallel.engine=native", "parallel.zero_stage=3"],
        'parallel.engine "native" (command line) does not go with parallel.zero_stage 3 (command line)',
    ),
    (
        ["parallel.engine=native", "parallel.zero_stage=1", "parallel.offload=cpu"],
        'parallel.engine "native" (command line) does not go with parallel.offload "cpu" (command line)',
    ),
    (
        ["parallel.engine=deepspeed", "parallel.zero_stage=0"],
        'parallel.engine "deepspeed" (command line) does not go with parallel.zero_stage 0 (command line)',
    ),
    (
        ["parallel.activation_checkpointing_every=2"],
        "parallel.activation_checkpointing_every 2 (command line) does nothing with "
        "parallel.activation_checkpointing",
    ),
]


@pytest.mark.parametrize(("overrides", "what"), CONTRADICTIONS)
def test_a_contradiction_names_both_values(
    overrides: list[str], what: str, refused_for_one: RefusedForOne
) -> None:
    refused_for_one(overrides, what)


TENSOR_PARALLEL = [
    # (overrides, size, what the message says)
    ([], 3, "model.num_attention_heads 4 (c.yaml:7) is not divisible by parallel.tensor_parallel_size 3"),
    (
        ["model.intermediate_size=70", "model.num_key_value_heads=4"],
        4,
        "model.intermediate_size 70 (command line) is not divisible by parallel.tensor_parallel_size 4",
    ),
    (
        ["model.num_attention_heads=12", "model.hidden_size=144", "model.num_key_value_heads=6"],
        4,
        "model.num_key_value_heads 6 (command line) and parallel.tensor_parallel_size 4 (command line): one",
    ),
    (
        ["model.head_dim=10", "model.num_key_value_heads=1"],
        4,
        "model.head_dim 10 (command line) is not divisible by the 4 ranks that share each head of",
    ),
    (
        ["model.hidden_size=56", "model.num_key_value_heads=1"],
        4,
        "model.head_dim null (default), which means 14, is not divisible by the 4 ranks",
    ),
    (
        ["data.sequence_length=126", "parallel.sequence_parallel=true"],
        4,
        "data.sequence_length 126 (command line) is not divisible by parallel.tensor_parallel_size 4",
    ),
]


@pytest.mark.parametrize(("overrides", "size", "what"), TENSOR_PARALLEL)
def test_what_tensor_parallel_ranks_cannot_share_is_named(
    overrides: list[str], size: int, what: str, base: str, refused: Refused
) -> None:
    assert what in refused(base, *overrides, f"parallel.tensor_parallel_size={size}")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_they_can_share_is_accepted(size: int, write: Write) -> None:
    overrides = [
        f"parallel.tensor_parallel_size={size}",
        f"parallel.sequence_parallel={str(size > 1).lower()}",
    ]
    load(write(), [*overrides, f"parallel.world_size={2 * size}"])


def test_a_size_that_is_left_to_its_default_is_judged_too(base: str, refused: Refused) -> None:
    text = base.replace("num_attention_heads: 4", "num_attention_heads: 10").replace("64", "160")
    message = refused(text, "parallel.tensor_parallel_size=5", "model.num_key_value_heads=null")
    assert "model.intermediate_size null (default), which means 448, is not divisible by" in message


def test_all_mistakes_of_a_layout_are_named_at_once(base: str, refused: Refused) -> None:
    world = ["parallel.tensor_parallel_size=3", "parallel.world_size=4", "parallel.sequence_parallel=true"]
    message = refused(base, *world, "model.intermediate_size=100")
    for name in (
        "num_attention_heads 4",
        "num_key_value_heads 2",
        "intermediate_size 100",
        "sequence_length",
    ):
        assert name in message
    assert "parallel.world_size 4 (command line) is not a multiple of" in message
    assert "5 mistakes" in message


def test_micro_batches_divide_what_a_rank_has(write: Write, refused: Refused, base: str) -> None:
    ten = ["train.global_batch_size=10", "train.micro_batch_size=3"]
    assert load(write(), [*ten, "parallel.world_size=4"])
    message = refused(base, *ten, "parallel.world_size=2")
    assert "does not divide the 5 of train.global_batch_size 10 (command line) that each of 2" in message
    assert "divisor of 5, or auto" in message
    assert "does not divide train.global_batch_size 10" in refused(base, *ten, "parallel.world_size=1")


@pytest.mark.parametrize(
    ("total", "micro", "ranks"), [(10, 3, 4), (16, 4, 1), (16, 3, 3), (4, 3, None), (16, 17, None), (7, 7, 1)]
)
def test_how_many_ranks_a_micro_batch_fits(total: int, micro: int, ranks: int | None, write: Write) -> None:
    overrides = [f"train.global_batch_size={total}", f"train.micro_batch_size={micro}"]
    if ranks is None:
        with pytest.raises(UserError, match="however many data-parallel ranks there are"):
            load(write(), overrides)
        return
    config = load(write(), overrides).config
    assert fitting_ranks(config) == ranks
    assert accumulation_steps(config, ranks, micro) >= 1


@pytest.mark.parametrize(
    ("overrides", "facts", "what"),
    [
        ([], Facts(6), "does not divide the 3 of train.global_batch_size 16 (c.yaml:21) that each of 6"),
        (["parallel.world_size=4"], Facts(2), "4 (command line), but the world that was joined has 2"),
        (["parallel.tensor_parallel_size=2"], Facts(3), "3 processes are not a multiple of parallel.tensor"),
        (["parallel.offload=cpu"], Facts(2, 0), "does not go with ZeRO stage 0: parallel.zero_stage"),
        (["model.vocab_size=600"], Facts(tokenizer_size=700), "smaller than the 700 tokens of the tokenizer"),
    ],
)  # fmt: skip
def test_what_only_a_launch_or_a_tokenizer_shows(
    overrides: list[str], facts: Facts, what: str, write: Write
) -> None:
    (mistake,) = check_again(load(write(), overrides), facts)
    assert mistake.location.startswith(("c.yaml:", "command line"))
    assert what in mistake.what


def test_what_a_launch_shows_is_named_at_once(write: Write) -> None:
    loaded = load(write(), ["parallel.offload=cpu", "parallel.world_size=4", "model.vocab_size=600"])
    assert len(check_again(loaded, Facts(3, 0, "cpu", 700))) == 4


def test_a_launch_that_fits_is_accepted(write: Write) -> None:
    assert not check_again(load(write(), ["parallel.offload=cpu"]), Facts(4, 3, "cpu", 700))
