"""The plan of a run: from the settings alone, with the launch, and with tokenizer and device."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from llmkit.config.load import Loaded, load
from llmkit.config.schema import Config
from llmkit.errors import UserError
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, Known, plan_for_shape, resolve_plan
from llmkit.plan.batch import choose_evaluation_batch
from llmkit.precision import PRECISIONS
from tests.examples.project import project
from tests.program import make_project
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

CPU = DeviceFacts()
GPU = DeviceFacts("cuda", has_bf16_units=True, free_bytes=80 * 2**30)
NO_COMPILER = replace(CPU, compiler_missing="no C++ compiler is found")
COMPLETE = Known(world_size=1, tokenizer_size=300, holds_out=True, device=CPU)
SETTINGS = {"data": {"sources": [{"type": "stdlib"}], "sequence_length": 24}, "train": {"max_steps": 3}}


@pytest.fixture
def config(tmp_path):
    return lambda *overrides: load(make_project(tmp_path), overrides)


def test_with_all_known_nothing_is_pending_and_nothing_changes_any_more(config):
    plan = resolve_plan(config("train.micro_batch_size=2"), COMPLETE)
    plan.require_complete()
    assert (plan.model.vocab_size, plan.model.padded_vocab_size % 128) == (300, 0)
    assert (plan.micro_batch_size, plan.accumulation_steps, plan.rows_per_rank) == (2, 2, 4)
    assert (plan.layout, plan.layout.engine) == (Layout(), "native")
    with pytest.raises(FrozenInstanceError):
        plan.micro_batch_size = 3


@pytest.mark.parametrize(
    ("known", "pending"),
    [
        (Known(), {"vocab_size", "world_size", "precision", "micro_batch_size", "kernels"}),
        (Known(2), {"vocab_size", "precision", "micro_batch_size", "kernels"}),
        (Known(2, tokenizer_size=300), {"precision", "micro_batch_size", "kernels"}),
        (Known(2, device=CPU), {"vocab_size"}),
    ],
)
def test_what_is_not_known_yet_is_pending(config, known, pending):
    loaded = config("train.precision=auto", "data.tokenizer={type: bpe, vocab_size: 300}")
    plan = resolve_plan(loaded, known)
    assert set(plan.pending) == pending
    with pytest.raises(ValueError, match="not complete"):
        plan.require_complete()


@pytest.mark.parametrize(
    ("asked", "device", "chosen"),
    [("auto", GPU, "bf16"), ("auto", CPU, "fp32"), ("bf16", CPU, "bf16"), ("fp32", GPU, "fp32")],
)
def test_precision_is_bf16_where_there_are_units_for_it(config, asked, device, chosen):
    plan = resolve_plan(config(f"train.precision={asked}"), replace(COMPLETE, device=device))
    assert plan.precision == PRECISIONS[chosen]


@pytest.mark.parametrize(
    ("overrides", "device", "compiled", "attention"),
    [
        (["kernels.compile=true"], CPU, True, "blocks"),
        (["kernels.compile=false"], CPU, False, "sdpa"),
        (["kernels.compile=auto"], NO_COMPILER, False, "sdpa"),
        (["kernels.compile=true"], GPU, True, "sdpa"),
        (["kernels.compile=false", "kernels.operators.attention=matmul"], GPU, False, "matmul"),
        (
            ["kernels.compile=true", "kernels.operators.attention=sdpa", "data.sequence_length=16"],
            CPU, True, "sdpa",
        ),
    ],
)  # fmt: skip
def test_kernels_are_the_fastest_of_the_device_unless_they_are_given(
    config, overrides, device, compiled, attention
):
    kernels = resolve_plan(config(*overrides), replace(COMPLETE, device=device)).kernels
    assert (kernels.compiled, kernels.forms["attention"]) == (compiled, attention)


def test_why_nothing_is_compiled_is_said(config):
    (note,) = resolve_plan(
        config("kernels.compile=auto"), replace(COMPLETE, device=NO_COMPILER)
    ).kernels.notes
    assert note == "training without torch.compile: no C++ compiler is found"
    zero3 = config("kernels.compile=auto", "parallel.zero_stage=3", "parallel.activation_checkpointing=full")
    plan = resolve_plan(zero3, replace(COMPLETE, world_size=2))
    assert plan.kernels.compiled and not plan.kernels.blocks_compiled
    assert "under ZeRO-3 are not compiled: head, loss" in plan.kernels.notes[0]


def test_compilation_that_is_asked_for_and_cannot_work_is_a_mistake_with_its_place(config):
    with pytest.raises(UserError, match=r"command line: kernels.compile true .* cannot work here: no C"):
        resolve_plan(config("kernels.compile=true"), replace(COMPLETE, device=NO_COMPILER))


def test_everything_that_is_wrong_is_named_at_once(config):
    loaded = config(
        "parallel.offload=cpu", "parallel.world_size=4", "model.vocab_size=600", "kernels.compile=true"
    )
    with pytest.raises(UserError) as refusal:
        resolve_plan(loaded, Known(world_size=3, tokenizer_size=700, device=NO_COMPILER))
    message = str(refusal.value)
    assert message.startswith("tiny.yaml: 4 mistakes") or "4 mistakes" in message.splitlines()[0]
    for what in ("parallel.offload", "the world that was joined has 3", "the 700 tokens", "no C++ compiler"):
        assert what in message


def test_what_the_device_and_the_layout_leave_decides_the_micro_batch(config):
    loaded = config("train.global_batch_size=8")
    assert resolve_plan(loaded, COMPLETE).micro_batch_size == 8
    assert resolve_plan(loaded, replace(COMPLETE, world_size=4)).micro_batch_size == 2
    full = resolve_plan(loaded, replace(COMPLETE, device=replace(GPU, free_bytes=0)))
    assert (full.micro_batch_size, full.accumulation_steps) == (1, 8)


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE])
def test_a_shape_is_planned_as_it_is(shape):
    plan = plan_for_shape(shape, SETTINGS, CPU)
    plan.require_complete()
    assert plan.model == shape


def test_a_configuration_made_in_python_is_named_in_its_mistakes():
    loaded = Loaded.of(Config.model_validate({**SETTINGS, "model": {"hidden_size": 100}}), "my settings")
    with pytest.raises(UserError, match=r"^my settings: 1 mistake\n  my settings: model.hidden_size 100"):
        resolve_plan(loaded)


def test_an_automatic_micro_batch_on_a_gpu_needs_a_model_whose_memory_is_known(tmp_path):
    model = "model:\n  type: convolution\n  width: 24\n"
    with project(tmp_path, "own_model", model, drop=("model",)):
        loaded = load("tiny.yaml")
        gpu = replace(COMPLETE, tokenizer_size=257, device=GPU)
        with pytest.raises(UserError) as refusal:
            resolve_plan(loaded, gpu)
        assert 'micro_batch_size "auto" (default) needs an estimate' in str(refusal.value)
        assert 'there is none for model.type "convolution" (tiny.yaml:' in str(refusal.value)
        assert resolve_plan(load("tiny.yaml", ["train.micro_batch_size=2"]), gpu).micro_batch_size == 2
        assert resolve_plan(loaded, replace(gpu, device=CPU)).micro_batch_size > 0
        shape = resolve_plan(loaded, replace(gpu, device=CPU)).model
        assert choose_evaluation_batch(loaded.config, shape, PRECISIONS["bf16"], GPU) == 1
