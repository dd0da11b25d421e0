"""A user's DeepSpeed file: each key takes effect, or is refused with its line and what to do instead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.load import load
from llmkit.engine.deepspeed_config import deepspeed_config
from llmkit.errors import UserError
from llmkit.parallel.accelerate import read_accelerate
from llmkit.parallel.deepspeed_file import read_deepspeed_file
from llmkit.parallel.deepspeed_keys import RULES, SAME_SECTION, Passed
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, Known, Plan, plan_for_shape, resolve_plan
from tests.program import make_project
from tests.shapes import LLAMA_STYLE

AUTO = dict.fromkeys(
    (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ),
    "auto",
)
HALF = {
    "bf16": {"enabled": "auto"},
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
}
TEMPLATE_2 = {
    **HALF, **AUTO, "steps_per_print": 2000, "wall_clock_breakdown": False,
    "zero_optimization": {
        "stage": 2, "offload_optimizer": {"device": "none", "pin_memory": True}, "allgather_partitions": True,
        "allgather_bucket_size": 2e8, "overlap_comm": True, "reduce_scatter": True,
        "reduce_bucket_size": "auto", "contiguous_gradients": True,
    },
}  # fmt: skip
TEMPLATE_3 = {
    **HALF, **AUTO,
    "zero_optimization": {
        "stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True}, "overlap_comm": True,
        "contiguous_gradients": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": 1e5,
        "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}  # fmt: skip
"""As in the handbooks of accelerate and transformers, but for optimizer and scheduler."""


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


def launched(folder: Path, content: Any) -> dict[str, str]:
    """The environment of a launch with this file."""
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}


def layout(folder: Path, content: Any, *overrides: str) -> Layout:
    loaded = load(make_project(folder), overrides)
    return resolve_plan(loaded, Known(2, read_accelerate(launched(folder, content)))).layout


def plan_of(layout: Layout) -> Plan:
    """The plan of a model with a layout of its own."""
    settings: dict[str, Any] = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 24}, "train": {"max_steps": 1}
    }  # fmt: skip
    return replace(plan_for_shape(LLAMA_STYLE, settings, DeviceFacts()), layout=layout)


def refused(folder: Path, content: Any, *overrides: str) -> str:
    with pytest.raises(UserError) as refusal:
        layout(folder, content, *overrides)
    return str(refusal.value)


def test_the_templates_of_the_handbooks_are_followed(tmp_path):
    two = layout(tmp_path, TEMPLATE_2)
    assert (two.zero_stage, two.offload) == (2, "none")
    prefix = "zero_optimization."
    assert two.deepspeed == {f"{prefix}allgather_bucket_size": 200_000_000, f"{prefix}overlap_comm": True}
    three = layout(tmp_path, TEMPLATE_3)
    assert (three.zero_stage, three.offload) == (3, "cpu")
    assert three.deepspeed[f"{prefix}stage3_param_persistence_threshold"] == 100_000
    assert three.deepspeed[f"{prefix}offload_param.pin_memory"] is True


def test_what_is_passed_on_reaches_deepspeed(tmp_path):
    ours = deepspeed_config(
        plan_of(Layout(2, zero_stage=3, offload="cpu")), largest_parameter=1000, on_gpu=False
    )
    theirs = deepspeed_config(plan_of(layout(tmp_path, TEMPLATE_3)), largest_parameter=1000, on_gpu=False)
    passed = {
        "overlap_comm": True, "stage3_param_persistence_threshold": 100_000,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
    }  # fmt: skip
    assert theirs == ours | {"zero_optimization": ours["zero_optimization"] | passed}


def test_a_bucket_that_would_lose_gradients_is_refused():
    sizes = {"largest_parameter": 2000, "on_gpu": True}
    small = {"zero_optimization.reduce_bucket_size": 1000}
    with pytest.raises(UserError, match=r"reduce_bucket_size 1000, .* of 2000 elements"):
        deepspeed_config(plan_of(Layout(2, zero_stage=2, deepspeed=small)), **sizes)
    serial = small | {"zero_optimization.overlap_comm": False}
    for layout in (Layout(2, zero_stage=3, deepspeed=small), Layout(2, zero_stage=2, deepspeed=serial)):
        assert deepspeed_config(plan_of(layout), **sizes)["zero_optimization"]["reduce_bucket_size"] == 1000


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel: parallel.tensor_parallel_size"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size 2 is not what llmkit does"),
        ({"activation_checkpointing": {"partition_activations": True}}, "parallel.activation_checkpointing"),
        ({"zero_stag": 2}, "zero_stag is no key of DeepSpeed's that llmkit knows; did you mean zero_opti"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean zero_optimization?"),
        (zero(2, overlap_com=True), "did you mean zero_optimization.overlap_comm?"),
        ({"overlap_comm": True}, "did you mean zero_optimization.overlap_comm?"),
        ({"something": 1}, "something is no key of DeepSpeed's that llmkit knows; take it out"),
        ({"zero_optimization": True}, "zero_optimization is true; it must be a section"),
        (zero(3, zero_hpz_partition_size=8), "zero_hpz_partition_size 8 is not"),
        (zero(3, zero_quantized_weights=True), "zero_quantized_weights true is not"),
        (zero(2, reduce_scatter=False), "reduce_scatter false is not"),
        (zero(2, reduce_bucket_size="big"), "it must be a whole number from 1"),
        (zero(2, reduce_bucket_size=1.5), "it must be a whole number from 1"),
        (zero(2, allgather_bucket_size=3), "it must be a multiple of 2"),
        (zero(2, overlap_comm=1), "it must be true or false"),
        (zero(2, sub_group_size=10), "is for ZeRO stage 3, but the stage is 2"),
        ({"zero_optimization": {"reduce_bucket_size": 10}}, "but the stage is 0"),
        (zero(3, offload_optimizer={"device": "nvme", "nvme_path": "/n"}), "NVMe"),
        ({"fp16": {"enabled": True}}, "does not use fp16: llmkit trains in bf16 or fp32"),
        ({"communication_data_type": "bf16"}, "gradients are always sent in fp32"),
        ({"wandb": {"enabled": True}}, "does not use wandb: monitor.wandb"),
        ({"optimizer": {"type": "AdamW"}}, "does not use optimizer: the sections optimizer and schedule"),
        ({"train_batch_size": 3}, "train.global_batch_size 4 ("),
        ({"aio": {"block_size": 1048576}}, "does not use aio"),
        ("[]", "holds no {...}"),
        ('{"bf16": {}, "bf16": {}}', "bf16 is given twice"),
    ],
)  # fmt: skip
def test_what_llmkit_does_otherwise_is_refused_by_name(tmp_path, content, what):
    message = refused(tmp_path, content)
    assert what in message
    assert str(tmp_path / "ds.json") in message


def test_all_mistakes_are_named_at_once_with_their_lines(tmp_path):
    content = {
        "zero_stag": 2,
        "zero_optimization": {"stage": 2, "overlap_com": True},
        "pipeline": {"stages": 2},
    }
    file = tmp_path / "ds.json"
    heading, *lines = refused(tmp_path, content).splitlines()
    assert heading.endswith("tiny.yaml: 3 mistakes")
    places = [
        f"  {file}:2: zero_stag ",
        f"  {file}:5: zero_optimization.overlap_com ",
        f"  {file}:7: llmkit ",
    ]
    assert [line.startswith(place) for line, place in zip(lines, places, strict=True)] == [True] * 3


def test_what_is_switched_off_is_no_wish(tmp_path):
    off = {
        "fp16": {"enabled": False, "loss_scale": 0}, "activation_checkpointing": {"cpu_checkpointing": False},
        "wandb": {"enabled": False, "project": "p"}, "tensorboard": {}, "sequence_parallel_size": 1,
        "zero_optimization": {"stage": 2, "offload_param": None, "zero_hpz_partition_size": 1},
    }  # fmt: skip
    assert layout(tmp_path, off) == Layout(2, zero_stage=2, engine="deepspeed")


@pytest.mark.parametrize("section", ["bf16", "bfloat16"])
def test_the_precision_of_the_file(tmp_path, section):
    for enabled, asked in ((True, "bf16"), (False, "fp32"), ("auto", "auto")):
        environment = launched(tmp_path, {section: {"enabled": enabled}})
        for ours in ("auto", "bf16", "fp32"):
            loaded = load(make_project(tmp_path), [f"train.precision={ours}"])
            if asked != "auto" and ours not in ("auto", asked):
                with pytest.raises(
                    UserError, match=rf"train\.precision .*mixed_precision {asked} \(.*ds.json:3\)"
                ):
                    resolve_plan(loaded, Known(2, read_accelerate(environment)))
            else:
                expected = asked if ours == "auto" else ours
                plan = resolve_plan(loaded, Known(2, read_accelerate(environment)))
                assert ("auto" if "precision" in plan.pending else plan.precision.name) == expected


def test_what_has_no_effect_is_told(tmp_path):
    launched(tmp_path, TEMPLATE_2)
    (note,) = read_deepspeed_file(tmp_path / "ds.json").no_effect
    assert note == (
        f"steps_per_print 2000 ({tmp_path / 'ds.json'}:16) has no effect: "
        "monitor.log_every says how often the console has a line"
    )


class Recording(dict):
    """A configuration that notes which keys DeepSpeed looks up in it."""

    def __init__(self, content: dict[str, Any], seen: set[str]) -> None:
        super().__init__(content)
        self.seen = seen

    def __contains__(self, key: object) -> bool:
        self.seen.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self


def test_every_key_of_deepspeeds_is_decided(monkeypatch):
    """By its own schema: a new version's new key would be dropped without a word."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import (
        _REMOVED_TOP_LEVEL_CONFIG_KEYS,
        _REMOVED_ZERO_CONFIG_KEYS,
        DeepSpeedConfig,
    )
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    seen: set[str] = set()
    DeepSpeedConfig(Recording({"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1}, seen))
    assert len(seen) > 50
    known = {SAME_SECTION.get(key, key) for key in seen | set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)}
    prefix = "zero_optimization."
    known |= {f"{prefix}{key}" for key in _REMOVED_ZERO_CONFIG_KEYS}
    classes = {
        prefix: DeepSpeedZeroConfig, f"{prefix}offload_param.": DeepSpeedZeroOffloadParamConfig,
        f"{prefix}offload_optimizer.": DeepSpeedZeroOffloadOptimizerConfig, "bf16.": DeepSpeedBF16Config,
    }  # fmt: skip
    for section, kind in classes.items():
        known |= {f"{section}{field.alias or name}" for name, field in kind.model_fields.items()}
    undecided = {
        key for key in known if key not in RULES and not any(rule.startswith(f"{key}.") for rule in RULES)
    }
    assert undecided == set()
    old = {"sequence_parallel_size", "nebula", f"{prefix}offload_optimizer.pipeline"}
    data_types = {f"data_types.{name}" for name in ("grad_accum_dtype", "param_dtype", "buffer_dtype",
                                                    "keep_in_fp32_modules")}  # fmt: skip
    assert set(RULES) - known - old - data_types == set(), "keys that DeepSpeed does not have"


def test_what_is_passed_on_is_what_deepspeed_takes(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    kinds = {
        field.alias or name: field.annotation for name, field in DeepSpeedZeroConfig.model_fields.items()
    }
    for key, rule in RULES.items():
        if isinstance(rule, Passed) and "offload" not in key:
            assert kinds[key.removeprefix("zero_optimization.")] in (rule.kind, rule.kind | None), key
