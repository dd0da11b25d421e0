"""What is allowed, but has no effect or comes too late, is noted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.load import load
from llmkit.config.remarks import IDLE
from llmkit.config.show import show
from llmkit.plan import resolve_plan
from llmkit.plan.text import show_plan

Write = Callable[..., str]

IDLE_CASES = {
    "model.rope_theta": (["model.rope_theta=5e5", "model.position_embedding=learned"], "learned"),
    "model.sliding_window": (["model.sliding_window=128"], "data.sequence_length 128 (c.yaml:18)"),
    "data.tokenizer.chat_template": (["data.tokenizer.chat_template=x"], 'data.sources.0.record "text"'),
    "data.packing": (
        ["data.packing=best_fit", "data.sources=[{type: text, path: a, live: true}]"],
        "data.sources.0.live true (command line)",
    ),
    "data.stream_shards": (["data.stream_shards=7"], "data.sources.0.live false"),
    "data.shuffle_window": (["data.shuffle_window=7"], "data.sources.0.live false"),
    "data.workers": (["data.workers=7"], "data.sources.0.live false"),
    "train.max_minutes": (["train.max_minutes=5"], "train.max_steps 200 (c.yaml:"),
    "train.ema.every_steps": (["train.ema.every_steps=7"], "train.ema.decay null (default)"),
    "train.ema.evaluate": (["train.ema.evaluate=true"], "train.ema.decay null (default)"),
    "optimizer.momentum": (["optimizer.momentum=0.5"], 'optimizer.name "adamw"'),
    "optimizer.momentum_warmup_steps": (["optimizer.momentum_warmup_steps=9"], 'optimizer.name "adamw"'),
    "optimizer.momentum_start": (["optimizer.momentum_start=0.5"], "momentum_warmup_steps 0 (default)"),
    "schedule.steps": (["schedule.steps=90", "schedule.name=constant"], '"constant"'),
    "schedule.min_lr_ratio": (["schedule.min_lr_ratio=0.5", "schedule.name=constant"], '"constant"'),
    "schedule.decay_fraction": (["schedule.decay_fraction=0.5"], 'schedule.name "cosine" (c.yaml:27)'),
    "schedule.decay_shape": (["schedule.decay_shape=sqrt"], 'schedule.name "cosine" (c.yaml:27)'),
}


def test_every_setting_that_may_be_idle_has_a_case() -> None:
    assert IDLE_CASES.keys() == IDLE.keys()


@pytest.mark.parametrize("path", IDLE)
def test_a_setting_without_effect_is_noted_with_the_reason(path: str, write: Write) -> None:
    overrides, reason = IDLE_CASES[path]
    (remark,) = [each for each in load(write(), overrides).remarks if "has no effect" in each]
    assert remark.startswith(f"{path} ")
    assert "(command line) has no effect: " in remark
    assert reason in remark


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.sliding_window=127"],
        ["optimizer.momentum=0.95"],
        ["optimizer={name: muon, momentum: 0.5, betas: [0, 0], learning_rate: 1}", "schedule.warmup_steps=9"],
        ["data.sources.1.live=true", "data.stream_shards=7", "data.packing=best_fit"],
        ["data.workers=auto"],
    ],
)  # fmt: skip
def test_a_setting_with_effect_or_at_its_default_is_not(overrides: list[str], write: Write) -> None:
    assert load(write(), overrides).remarks == ()


def test_values_of_groups_without_effect_are_noted(write: Write) -> None:
    groups = (
        "[{params: [embedding.weight], momentum: 0.5, eps: 1e-6}, {params: ['*.mlp.*'], betas: [0.8, 0.9]}, "
        "{params: ['blocks.*.attention*'], betas: [0.8, 0.9], momentum: 0.8}]"
    )
    section = f"optimizer={{name: muon, learning_rate: 1, betas: [0, 0], groups: {groups}}}"
    assert load(write(), [section, "schedule.warmup_steps=9"]).remarks == (
        "optimizer.groups.0.momentum 0.5 (command line) has no effect: adamw updates all parameters of the "
        "group",
        "optimizer.groups.1.betas [0.8, 0.9] (command line) has no effect: muon updates all parameters of "
        "the group",
    )  # the norm of attention is AdamW's, its matrices are Muon's


def test_the_momentum_of_a_registered_optimizer_has_effect(write: Write) -> None:
    config = load(write(), ["optimizer.momentum=0.5"]).config
    own = config.optimizer.model_copy(update={"name": "lion"})
    idle, _ = IDLE["optimizer.momentum"]
    assert idle(config) and not idle(config.model_copy(update={"optimizer": own}))


def test_a_setting_that_a_later_one_overrules_is_not(base: str, write: Write) -> None:
    write("train: {max_minutes: 5}\n", "timed.yaml")
    assert load(write("extends: timed.yaml\n" + base)).remarks == ()


def test_what_comes_after_the_end_is_noted(write: Write) -> None:
    stages = "data.curriculum=[{step: 9, weights: {stdlib-0: 2}}, {step: 99, weights: {stdlib-0: 1}}]"
    loaded = load(write(), [stages, "train.max_steps=20", "evaluate.every_steps=20"])
    assert loaded.remarks == (
        "data.curriculum.1.step 99 (command line) comes after the end of the run, which has 20 steps",
        "schedule.warmup_steps 20 (c.yaml:28) is not less than the 20 steps of the run: the learning rate "
        "does not get past its warm-up",
    )
    (remark,) = load(write(), ["schedule.steps=19"]).remarks
    assert "warmup_steps 20 (c.yaml:28) is not less than schedule.steps 19 (command line)" in remark


def test_evaluations_that_never_come_are_noted(write: Write) -> None:
    every = ["train.max_steps=40", "evaluate.every_steps=41"]
    assert load(write(), every).remarks == (
        "evaluate.every_steps 41 (command line) is more than the 40 steps of the run: it is evaluated at its "
        "end only",
    )
    assert load(write(), ["train.max_steps=40", "evaluate.every_steps=40"]).remarks == ()


def test_checkpoints_that_are_kept_otherwise_than_meant_are_noted(write: Write) -> None:
    best = "checkpoint.keep_best=true"
    (remark,) = load(write(), [best, "evaluate.every_steps=0"]).remarks
    assert remark.startswith("checkpoint.keep_best true (command line): the run is evaluated at its end only")
    assert load(write(), [best, "evaluate.every_steps=10"]).remarks == ()
    steps = ["checkpoint.every_steps=1000", "checkpoint.keep_every={}"]
    (remark,) = load(write(), [steps[0], steps[1].format(1500)]).remarks
    assert remark.endswith("every_steps 1000 (command line): one checkpoint in 3000 steps is kept")
    for every in (0, 1000, 5000):
        assert load(write(), [steps[0], steps[1].format(every)]).remarks == ()


def test_the_view_ends_with_the_remarks(write: Write) -> None:
    loaded = load(write(), ["optimizer.momentum=0.5"])
    assert show(loaded, show_plan(resolve_plan(loaded))).endswith(f"# note: {loaded.remarks[0]}\n")
    assert load(write(show(loaded, show_plan(resolve_plan(loaded))), "view.yaml")).config == loaded.config
