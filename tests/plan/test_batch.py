"""The automatic micro-batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.config.load import load
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, batch
from llmkit.plan.batch import choose_evaluation_batch
from llmkit.plan.plan import Kernels, Plan
from llmkit.precision import PRECISIONS, Precision
from tests.program import make_project
from tests.shapes import LLAMA_STYLE

CPU = DeviceFacts()
FP32, BF16 = PRECISIONS["fp32"], PRECISIONS["bf16"]
EAGER, COMPILED = Kernels(False, {}), Kernels(True, {})
LARGE = replace(LLAMA_STYLE, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)


def gpu(free_gib: int) -> DeviceFacts:
    return DeviceFacts("cuda", has_bf16_units=True, free_bytes=free_gib * 2**30)


def choose_micro_batch(
    config: Config,
    shape: ModelShape,
    precision: Precision,
    device: DeviceFacts,
    kernels: Kernels,
    layout: Layout | None = None,
) -> int:
    return batch.choose_micro_batch(Plan(config, shape, layout or Layout(), precision, 1, 1, kernels), device)


@pytest.fixture
def config(tmp_path):
    return lambda *overrides: load(make_project(tmp_path), overrides).config


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [(12, 32, 12), (12, 8192, 2), (12, 16384, 1), (7, 8192, 1), (3, 100_000, 1)],
)
def test_it_divides_the_batch_and_stays_small_on_a_cpu(config, rows, length, expected):
    settings = config(f"train.global_batch_size={rows}", f"data.sequence_length={length}")
    assert choose_micro_batch(settings, LLAMA_STYLE, FP32, CPU, EAGER) == expected


def test_it_fits_the_free_memory_of_a_gpu(config):
    settings = config("train.global_batch_size=64", "data.sequence_length=1024")
    chosen = [choose_micro_batch(settings, LARGE, BF16, gpu(free), EAGER) for free in (1, 8, 80)]
    assert chosen[0] < chosen[1] < chosen[2] == 64
    assert all(64 % n == 0 for n in chosen)


def test_a_given_micro_batch_is_taken(config):
    assert choose_micro_batch(config("train.micro_batch_size=2"), LLAMA_STYLE, FP32, CPU, EAGER) == 2


def test_it_divides_the_rows_of_a_rank(config):
    settings = config("train.global_batch_size=26", "data.sequence_length=4096")
    for layout, expected in ((Layout(world_size=3), 3), (Layout(4, 2), 1), (Layout(world_size=13), 2)):
        assert choose_micro_batch(settings, LLAMA_STYLE, FP32, CPU, EAGER, layout) == expected


def test_what_is_recomputed_leaves_room_for_larger_micro_batches(config):
    settings = config("train.global_batch_size=64", "data.sequence_length=1024")
    chosen = [
        choose_micro_batch(settings, LARGE, BF16, gpu(5), EAGER, layout)
        for layout in (Layout(), Layout(activation_checkpointing="full"))
    ]
    assert chosen[0] < chosen[1]


def test_a_compiled_model_keeps_less(config):
    settings = config("train.global_batch_size=64", "data.sequence_length=1024")
    chosen = [choose_micro_batch(settings, LARGE, BF16, gpu(16), kernels) for kernels in (EAGER, COMPILED)]
    assert chosen[0] < chosen[1]


def test_llama_1b_on_80_gib_takes_what_fits(config):
    settings = config("train.global_batch_size=256", "data.sequence_length=2048")
    shape = replace(
        LLAMA_STYLE, vocab_size=128_256, padded_vocab_size=128_256, hidden_size=2048, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, intermediate_size=8192,
        tie_word_embeddings=True,
    )  # fmt: skip
    assert choose_micro_batch(settings, shape, BF16, gpu(79), COMPILED) == 8


def test_an_evaluation_has_the_memory_beside_the_weights_to_itself(config):
    settings = config("train.global_batch_size=64", "data.sequence_length=1024")
    training = choose_micro_batch(settings, LARGE, BF16, gpu(3), EAGER)
    assert training < choose_evaluation_batch(settings, LARGE, BF16, gpu(3))
    given = config("train.micro_batch_size=2")
    assert choose_evaluation_batch(given, LARGE, BF16, gpu(3)) == 2
