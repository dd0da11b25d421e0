"""Reads the configuration of `accelerate launch` from the environment that it gives its processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmkit.config.mistakes import Mistake
from llmkit.parallel.deepspeed_file import DeepSpeedFile, read_deepspeed_file
from llmkit.parallel.deepspeed_keys import NVME
from llmkit.parallel.launch_setting import LaunchSetting

OTHER_LAYOUTS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Set to "true" where accelerate's configuration asks for what llmkit does in another way."""
VARIABLES = {
    "zero_stage": ("zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE"),
    "offload_optimizer": ("offload_optimizer_device", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"),
    "offload_param": ("offload_param_device", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"),
    "accumulation": ("gradient_accumulation_steps", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
    "clipping": ("gradient_clipping", "ACCELERATE_GRADIENT_CLIPPING"),
}
"""Field of AccelerateConfig: its name in accelerate's YAML, and the variable that carries it."""
REFUSED = {
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo_backend", "kernels.compile decides"),
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": (
        "deepspeed_moe_layer_cls_names",
        "llmkit's models have no mixture of experts",
    ),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_NVME_PATH": ("offload_optimizer_nvme_path", NVME),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_NVME_PATH": ("offload_param_nvme_path", NVME),
    "ACCELERATE_TORCH_DEVICE": ("a device", "CUDA_VISIBLE_DEVICES says which GPUs there are, or none"),
}
"""Variable: the setting that it carries, and what to do instead."""
NO_EFFECT = {
    "ACCELERATE_DEBUG_MODE": ("debug", "llmkit itself compares what its processes are given"),
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": (
        "zero3_save_16bit_model",
        "llmkit saves its own checkpoints",
    ),
}
"""Variable: the setting that it carries, and why it says nothing about training. (zero3_init_flag is none of
them: it is about models of transformers, and under ZeRO-3 llmkit's are always made in parts.)"""
BY_DEFAULT = "by default"
DEFAULTS = {
    "zero_stage": LaunchSetting("zero_stage", "2", BY_DEFAULT),
    "offload_optimizer": LaunchSetting("offload_optimizer_device", "none", BY_DEFAULT),
    "offload_param": LaunchSetting("offload_param_device", "none", BY_DEFAULT),
}
"""Accelerate's defaults, for what a DeepSpeed configuration leaves out."""
DEFAULTS_OF_FILES = DEFAULTS | {"zero_stage": LaunchSetting("zero_optimization.stage", 0, BY_DEFAULT)}


@dataclass(frozen=True)
class AccelerateConfig:
    """The settings in accelerate's configuration; None where it has none.

    None, too, for what accelerate writes unasked: mixed_precision "no", one accumulation
    step, "auto". passed: what goes to DeepSpeed as it is, by its dotted key. notes: what has no effect.
    mistakes: what llmkit does not do (FSDP, fp16, a DeepSpeed file with an optimizer, ...), contradictions.
    """

    zero_stage: LaunchSetting | None = None
    offload_optimizer: LaunchSetting | None = None
    offload_param: LaunchSetting | None = None
    mixed_precision: LaunchSetting | None = None
    accumulation: LaunchSetting | None = None
    clipping: LaunchSetting | None = None
    micro_batch: LaunchSetting | None = None
    global_batch: LaunchSetting | None = None
    passed: Mapping[str, LaunchSetting] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    mistakes: tuple[Mistake, ...] = ()


def uses_deepspeed(environment: Mapping[str, str]) -> bool:
    """Whether accelerate's configuration is of the type DEEPSPEED."""
    return environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def read_accelerate(environment: Mapping[str, str]) -> AccelerateConfig:
    """The launcher's configuration; an empty one where this process was started in another way."""
    mistakes = list(_refused(environment))
    found: dict[str, LaunchSetting] = {}
    passed: dict[str, LaunchSetting] = {}
    notes = [
        f"{name} ({variable}) has no effect: {reason}"
        for variable, (name, reason) in NO_EFFECT.items()
        if environment.get(variable, "").lower() in ("true", "1")
    ]
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        found["mixed_precision"] = LaunchSetting("mixed_precision", precision, "ACCELERATE_MIXED_PRECISION")
    if uses_deepspeed(environment):
        path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        file = DeepSpeedFile() if path == "none" else read_deepspeed_file(Path(path))
        passed, notes, mistakes = file.passed, notes + file.no_effect, mistakes + file.mistakes
        defaults = DEFAULTS if path == "none" else DEFAULTS_OF_FILES
        for name, setting in (*_of_environment(environment), *_of_file(file), *defaults.items()):
            if name not in found:
                found[name] = setting
            elif setting.location != BY_DEFAULT and not _agree(setting, found[name]):
                what = (
                    f"accelerate's configuration says both {found[name]} and {setting}; take one of them out"
                )
                mistakes.append(Mistake(setting.location, what))
    else:  # accelerate's own Accelerator reads this one under every launcher
        found |= {name: setting for name, setting in _of_environment(environment) if name == "accumulation"}
    if "accumulation" in found and found["accumulation"].number == 1:
        del found["accumulation"]
    if "mixed_precision" in found and found["mixed_precision"].value not in ("bf16", "fp32", "fp8"):
        mistakes.append(found.pop("mixed_precision").mistake("llmkit trains in bf16, fp32 or fp8"))
    return AccelerateConfig(**found, passed=passed, notes=tuple(notes), mistakes=tuple(mistakes))


def _refused(environment: Mapping[str, str]) -> Iterator[Mistake]:
    """What llmkit does in another way, or not at all."""
    for variable, layout in OTHER_LAYOUTS.items():
        if environment.get(variable, "").lower() == "true":
            yield Mistake(
                variable,
                f"accelerate's configuration is for {layout} ({variable}), which llmkit does not use: ZeRO "
                "shares out the state, parallel.tensor_parallel_size the layers",
                "launch with one of the files in launch/",
            )
    for variable, (name, instead) in REFUSED.items():
        if (value := environment.get(variable, "no")).lower() not in ("no", "none", ""):
            yield LaunchSetting(name, value, variable).mistake(f"take it out: {instead}")


def _agree(one: LaunchSetting, other: LaunchSetting) -> bool:
    """Whether both have the same value, however it is written."""
    if one.number is None or other.number is None:
        return one.value == other.value
    return one.number == other.number


def _of_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, LaunchSetting]]:
    """(field of AccelerateConfig, value) of the variables for a DeepSpeed section of accelerate's YAML."""
    for field_name, (name, variable) in VARIABLES.items():
        value = environment.get(variable, "auto")
        if value != "auto" and (value != "none" or field_name.startswith("offload")):
            yield field_name, LaunchSetting(name, value, variable)


def _of_file(file: DeepSpeedFile) -> Iterator[tuple[str, LaunchSetting]]:
    """The same of a DeepSpeed JSON file."""
    for field_name, setting in file.compared.items():
        if field_name == "mixed_precision":  # which is bf16.enabled there
            setting = setting._replace(
                name="mixed_precision", value="bf16" if setting.value is True else "fp32"
            )
        yield field_name, setting
