"""Files as `accelerate config` writes them: each is followed, or refused with the place and the remedy."""

from __future__ import annotations

import inspect
import json
import re

import pytest
from accelerate.utils import launch as accelerate_launch

from llmkit.config.load import Loaded, load
from llmkit.errors import UserError
from llmkit.parallel import accelerate
from llmkit.parallel.accelerate import read_accelerate
from llmkit.parallel.rank_info import RankInfo, rank_info_from_env
from llmkit.plan import Known, Plan, resolve_plan
from tests.parallel.accelerate_files import questioned, told_by_accelerate, written
from tests.program import make_project

MACHINE, PROCESSES, DEEPSPEED = "type of machine", "How many GPU", "use DeepSpeed?"
GPUS = {MACHINE: "multi-GPU", PROCESSES: 4}
ZERO_2 = {**GPUS, DEEPSPEED: "yes", "precision?": "bf16", "use gradient clipping": "yes"}
ZERO_3 = {
    **ZERO_2, "ZeRO optimization stage": 3, "offload optimizer": "cpu", "offload parameters": "cpu",
    "save 16-bit": "yes", "zero.Init": "yes",
}  # fmt: skip
NODES = {"different machines": 2, "rank of this machine": 0, "IP address": "10.0.0.1", "port you will": 29500}
CASES = {
    # name: (answers, stage, offload, precision)
    "one-cpu": ({"CPU only": "yes"}, 0, "none", "auto"),
    "one-gpu": ({"precision?": "bf16"}, 0, "none", "bf16"),
    "gpus": (GPUS, 0, "none", "auto"),
    "gpus-bf16": ({**GPUS, "precision?": "bf16"}, 0, "none", "bf16"),
    "nodes": ({**GPUS, **NODES}, 0, "none", "auto"),
    "zero-2": (ZERO_2, 2, "none", "bf16"),
    "zero-1": ({**ZERO_2, "ZeRO optimization stage": 1}, 1, "none", "bf16"),
    "zero-3": ({**ZERO_2, "ZeRO optimization stage": 3}, 3, "none", "bf16"),
    "zero-3-offload": (ZERO_3, 3, "cpu", "bf16"),
    "zero-3-nodes": ({**ZERO_3, **NODES, "Type of launcher": "standard"}, 3, "cpu", "bf16"),
}


def planned(loaded: Loaded, told: dict[str, str], world_size: int = 4) -> Plan:
    return resolve_plan(loaded, Known(world_size, read_accelerate(told)))


@pytest.fixture
def loaded(tmp_path):
    return load(make_project(tmp_path), ["train.precision=auto"])


@pytest.mark.parametrize("name", CASES)
def test_a_file_as_accelerate_writes_it_is_followed(loaded, tmp_path, monkeypatch, name):
    answers, stage, offload, precision = CASES[name]
    told = told_by_accelerate(questioned(tmp_path, answers, monkeypatch))
    plan = planned(loaded, told)
    layout = plan.layout
    assert (layout.zero_stage, layout.offload, dict(layout.deepspeed)) == (stage, offload, {})
    assert ("auto" if "precision" in plan.pending else plan.precision.name) == precision
    notes = read_accelerate(told).notes
    assert [note.split()[0] for note in notes] == ["zero3_save_16bit_model"] * ("save 16-bit" in answers)


def test_one_process_on_the_cpu_stays_one(tmp_path, monkeypatch):
    assert (
        rank_info_from_env(told_by_accelerate(questioned(tmp_path, {"CPU only": "yes"}, monkeypatch)))
        == RankInfo()
    )


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ({**GPUS, "precision?": "fp16"}, "mixed_precision fp16 (ACCELERATE_MIXED_PRECISION)"),
        ({**GPUS, "FullyShardedDataParallel": "yes"}, "FSDP (ACCELERATE_USE_FSDP)"),
        ({**GPUS, "use Megatron-LM": "yes"}, "Megatron-LM"),
        ({**GPUS, "torch dynamo": "yes"}, "kernels.compile decides"),
        ({**ZERO_2, "offload optimizer": "nvme"}, "offload_optimizer_device nvme"),
        ({**ZERO_2, "gradient clipping value": 0.3}, "train.gradient_clipping 1.0 (default) contradicts"),
        ({**ZERO_2, "accumulation steps": 4}, "gradient_accumulation_steps 4 (ACCELERATE_GRADIENT"),
        (
            {**ZERO_2, "Mixture-of-Experts": "yes", "MoE layer class": "Block"},
            "deepspeed_moe_layer_cls_names Block (ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES)",
        ),
    ],
)  # fmt: skip
def test_what_llmkit_does_otherwise_is_refused_by_name(loaded, tmp_path, monkeypatch, answers, what):
    told = told_by_accelerate(questioned(tmp_path, answers, monkeypatch))
    with pytest.raises(UserError) as refusal:
        planned(loaded, told)
    assert what in str(refusal.value)


@pytest.mark.parametrize("stage", [0, 2])
def test_accumulation_that_is_what_the_settings_make_agrees(tmp_path, stage):
    path = make_project(tmp_path)
    told = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
    if stage:
        told["ACCELERATE_USE_DEEPSPEED"] = "true"
    same = load(path, ["train.micro_batch_size=1"])  # of 4 rows on 2 ranks
    assert planned(same, told, 2).layout.zero_stage == stage
    with pytest.raises(UserError, match=r"gradient_accumulation_steps 2 .*which make 1"):
        planned(same, told, 4)


def test_what_the_launchers_file_leaves_open_contradicts_nothing(tmp_path):
    """Accelerate's own defaults are no wish of the user's."""
    told = told_by_accelerate(written(tmp_path, "distributed_type: DEEPSPEED\ndeepspeed_config: {}\n"))
    ours = load(make_project(tmp_path), ["parallel.zero_stage=3", "parallel.offload=cpu"])
    layout = planned(ours, told, 4).layout
    assert (layout.zero_stage, layout.offload) == (3, "cpu")
    auto = load(make_project(tmp_path))
    assert planned(auto, told, 4).layout.zero_stage == 2


def test_two_files_of_accelerate_that_contradict_each_other(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    text = (
        f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {file}, zero_stage: 3}}\n"
    )
    told = told_by_accelerate(written(tmp_path, text))
    both = rf"zero_stage 3 \(ACCELERATE_DEEPSPEED_ZERO_STAGE\) and zero_optimization.stage 2 \({file}:1\)"
    (mistake,) = read_accelerate(told).mistakes
    assert re.search(both, mistake.what)
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    said = read_accelerate(told).zero_stage
    assert said is not None and said.value == "3"


def test_a_wish_that_changes_nothing_is_noted(tmp_path):
    told = told_by_accelerate(written(tmp_path, "distributed_type: MULTI_GPU\ndebug: true\n"))
    assert read_accelerate(told).notes == (
        "debug (ACCELERATE_DEBUG_MODE) has no effect: llmkit itself compares what its processes are given",
    )


def test_every_variable_of_accelerates_launchers_is_decided():
    """A new version's new variable would be ignored without a word."""
    source = inspect.getsource(accelerate_launch)
    set_there = set(re.findall(r'env(?:ironment)?\["(ACCELERATE_\w+)"\]\s*=', source))
    assert len(set_there) > 20
    elsewhere = {
        "ACCELERATE_USE_CPU",  # parallel.world
        "ACCELERATE_CPU_AFFINITY",  # accelerate's PartialState heeds it
        "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DEEPSPEED_CONFIG_FILE",
        "ACCELERATE_CONFIG_DS_FIELDS",  # the names of what is in the variables
        "ACCELERATE_DEEPSPEED_ZERO3_INIT",  # of models of transformers
        # Of dynamo_backend, without which they say nothing.
        "ACCELERATE_DYNAMO_MODE", "ACCELERATE_DYNAMO_USE_FULLGRAPH", "ACCELERATE_DYNAMO_USE_DYNAMIC",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION",
    }  # fmt: skip
    compared = {variable for _, variable in accelerate.VARIABLES.values()}
    decided = {*accelerate.OTHER_LAYOUTS, *accelerate.REFUSED, *accelerate.NO_EFFECT, *compared, *elsewhere}
    assert set_there <= decided, set_there - decided
