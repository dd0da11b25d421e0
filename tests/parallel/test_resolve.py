"""The layout of a run: the settings, beside what accelerate's own launcher tells its processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.errors import UserError
from llmkit.parallel.accelerate import read_accelerate
from llmkit.parallel.layout import Layout
from llmkit.plan import Known, resolve_plan
from tests.parallel.accelerate_files import told_by_accelerate, written
from tests.program import make_project

LAUNCH = Path(__file__).parents[2] / "launch"
STAGES = {"cpu": 0, "ddp": 0, "multinode": 0, "zero1": 1, "zero2": 2, "zero3": 3, "zero3-offload": 3}
DEALT = [
    "model.moe.num_experts=6", "model.moe.num_experts_per_tok=2", "model.moe.moe_intermediate_size=32",
    "parallel.expert_parallel_size=2",
]  # fmt: skip
DEEPSPEED = "distributed_type: DEEPSPEED\ndeepspeed_config: {"


@pytest.fixture
def config(tmp_path):
    path = make_project(tmp_path)
    return lambda *overrides: load(path, overrides)


def layout(loaded, environment: dict[str, str], world_size: int = 4) -> Layout:
    return resolve_plan(loaded, Known(world_size, read_accelerate(environment))).layout


def refused(loaded, environment: dict[str, str], world_size: int = 4) -> str:
    with pytest.raises(UserError) as refusal:
        layout(loaded, environment, world_size)
    return str(refusal.value)


def test_every_launch_file_is_known_here():
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(STAGES)


@pytest.mark.parametrize(("name", "stage"), STAGES.items())
def test_auto_takes_the_stage_of_the_launch_file(config, name, stage):
    environment = told_by_accelerate(LAUNCH / f"{name}.yaml")
    found = layout(config(), environment)
    assert found.zero_stage == stage
    assert found.offload == ("cpu" if name == "zero3-offload" else "none")
    assert found.engine == ("deepspeed" if stage else "native")
    same = [f"parallel.zero_stage={stage}", f"parallel.offload={found.offload}"]
    assert layout(config(*same), environment) == found


@pytest.mark.parametrize("name", ["cpu", "ddp", "multinode"])
def test_a_launch_file_that_names_no_stage_contradicts_none(config, name):
    environment = told_by_accelerate(LAUNCH / f"{name}.yaml")
    assert layout(config("parallel.zero_stage=3", "parallel.offload=cpu"), environment).zero_stage == 3


def test_without_a_launcher_the_settings_alone_count(config):
    assert layout(config(), {}, 1) == Layout()
    parallel = {
        "world_size": 4, "tensor_parallel_size": 2, "sequence_parallel": "true", "zero_stage": 2,
        "offload": "cpu", "activation_checkpointing": "full", "activation_checkpointing_every": 2,
    }  # fmt: skip
    loaded = config(*(f"parallel.{name}={value}" for name, value in parallel.items()))
    assert layout(loaded, {}) == Layout(4, 2, True, 2, "cpu", "full", 2, engine="deepspeed")


@pytest.mark.parametrize(
    ("name", "overrides", "engine"),
    [
        ("ddp", ["parallel.zero_stage=1"], "native"),
        ("ddp", ["parallel.zero_stage=1", "parallel.offload=cpu"], "deepspeed"),
        ("ddp", ["parallel.zero_stage=2"], "deepspeed"),
        ("ddp", ["parallel.zero_stage=2", "parallel.engine=native"], "native"),
        ("ddp", ["parallel.zero_stage=2", *DEALT], "native"),
        ("ddp", ["parallel.zero_stage=1", *DEALT], "native"),
        ("ddp", ["parallel.zero_stage=1", "parallel.engine=deepspeed"], "deepspeed"),
        ("ddp", ["parallel.zero_stage=1", "parallel.engine=native"], "native"),
        ("zero1", [], "deepspeed"),
        ("zero1", ["parallel.zero_stage=1"], "deepspeed"),
        ("zero2", ["parallel.engine=deepspeed"], "deepspeed"),
    ],
)
def test_the_engine_that_a_stage_and_a_launch_file_ask_for(config, name, overrides, engine):
    assert layout(config(*overrides), told_by_accelerate(LAUNCH / f"{name}.yaml")).engine == engine


def test_a_native_engine_contradicts_a_launch_file_for_deepspeed(config):
    message = refused(config("parallel.engine=native"), told_by_accelerate(LAUNCH / "zero1.yaml"))
    assert 'parallel.engine "native" (command line)' in message
    assert "zero_stage 1 (ACCELERATE_DEEPSPEED_ZERO_STAGE)" in message
    assert "set parallel.engine to auto" in message
    message = refused(config("parallel.engine=native"), told_by_accelerate(LAUNCH / "zero2.yaml"))
    assert "zero_stage 2 (ACCELERATE_DEEPSPEED_ZERO_STAGE)" in message
    assert "set parallel.engine to auto" in message
    message = refused(config("parallel.zero_stage=2", *DEALT), told_by_accelerate(LAUNCH / "zero2.yaml"))
    assert "parallel.expert_parallel_size 2 (command line) does not go with parallel.engine" in message
    advice = "parallel.engine=native, and launch with a file that names no ZeRO stage (launch/ddp.yaml)"
    assert advice in message
    followed = config("parallel.zero_stage=2", "parallel.engine=native", *DEALT)
    assert layout(followed, told_by_accelerate(LAUNCH / "ddp.yaml")).engine == "native"


def test_a_stage_that_contradicts_names_both_places(config):
    message = refused(config("parallel.zero_stage=3"), told_by_accelerate(LAUNCH / "zero2.yaml"))
    assert "parallel.zero_stage 3 (command line)" in message
    assert "zero_stage 2 (ACCELERATE_DEEPSPEED_ZERO_STAGE)" in message
    assert "set parallel.zero_stage to auto" in message


def test_the_stage_may_stand_in_a_deepspeed_file(config, tmp_path):
    file = tmp_path / "ds.json"
    launch = written(
        tmp_path, f"distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: {file}\n"
    )
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    file.write_text(json.dumps({"zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto"}))
    found = layout(config(), told_by_accelerate(launch))
    assert (found.zero_stage, found.offload) == (3, "cpu")
    message = refused(config("parallel.zero_stage=1"), told_by_accelerate(launch))
    assert f"zero_optimization.stage 3 ({file}:1)" in message

    file.write_text(json.dumps({"bf16": {"enabled": True}}))
    assert layout(config("train.precision=auto"), told_by_accelerate(launch)).zero_stage == 0
    assert "train.precision" in refused(config("train.precision=fp32"), told_by_accelerate(launch))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"gradient_clipping": 0.3}', "gradient_clipping 0.3"),
        ('{"gradient_accumulation_steps": 8}', "gradient_accumulation_steps 8"),
        ('{"train_micro_batch_size_per_gpu": 3}', "train.micro_batch_size"),
        ('{"fp16": {"enabled": true}}', "bf16 or fp32"),
        ('{"zero_optimization": {"stage": 7}}', "the stages are"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}', "none and cpu"),
        ('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}', "both go together"),
        ('{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}', "only at ZeRO stage 3"),
        ("{broken", "cannot be read"),
    ],
)
def test_a_deepspeed_file_that_wants_something_else_is_refused(config, tmp_path, content, what):
    file = tmp_path / "ds.json"
    file.write_text(content)
    environment = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    message = refused(config(), environment)
    assert what in message
    assert str(file) in message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n", "FSDP"),
        ("distributed_type: MULTI_GPU\nmixed_precision: fp16\n", "mixed_precision fp16"),
        ("distributed_type: MULTI_GPU\ndynamo_backend: INDUCTOR\n", "kernels.compile decides"),
        (
            f"{DEEPSPEED}zero_stage: 2, gradient_accumulation_steps: 4}}\n",
            "gradient_accumulation_steps 4",
        ),
        (
            f"{DEEPSPEED}zero_stage: 2, gradient_clipping: 0.5}}\n",
            "train.gradient_clipping 1.0 (default)",
        ),
        (
            f"{DEEPSPEED}zero_stage: 1, offload_optimizer_device: nvme}}\n",
            "offload_optimizer_device nvme",
        ),
    ],
)
def test_a_configuration_of_accelerate_for_another_layout_is_refused(config, tmp_path, text, what):
    assert what in refused(config(), told_by_accelerate(written(tmp_path, text)))


def test_what_accelerate_writes_unasked_contradicts_nothing(config, tmp_path):
    asked = "distributed_type: DEEPSPEED\nmixed_precision: 'no'\ndeepspeed_config:\n  zero_stage: 2\n"
    unasked = "  gradient_accumulation_steps: 1\n  offload_optimizer_device: none\n  zero3_init_flag: false\n"
    assert layout(config(), told_by_accelerate(written(tmp_path, asked + unasked))).zero_stage == 2


def test_precision(config, tmp_path):
    environment = told_by_accelerate(
        written(tmp_path, "distributed_type: MULTI_GPU\nmixed_precision: bf16\n")
    )
    for ours, told, expected in (
        ("auto", {}, "auto"),
        ("auto", environment, "bf16"),
        ("bf16", environment, "bf16"),
        ("fp8", environment, "fp8"),  # whose weights are bf16
    ):
        plan = resolve_plan(config(f"train.precision={ours}"), Known(4, read_accelerate(told)))
        assert ("auto" if "precision" in plan.pending else plan.precision.name) == expected
    message = refused(config("train.precision=fp32"), environment)
    assert re.search(r"train.precision .*mixed_precision bf16", message)


def test_all_contradictions_are_named_at_once_with_their_places(config, tmp_path):
    text = f"{DEEPSPEED}zero_stage: 2, gradient_clipping: 0.5}}\nmixed_precision: bf16\n"
    message = refused(
        config("parallel.zero_stage=3", "train.precision=fp32", "train.micro_batch_size=2"),
        told_by_accelerate(written(tmp_path, text)),
    )
    assert "tiny.yaml: 4 mistakes" in message
    for what in ("parallel.zero_stage 3", "train.precision", "train.gradient_clipping", "micro_batch_size 2"):
        assert what in message
