"""What `accelerate launch` was configured for, read from the environment that it gives its processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.errors import UserError

OTHER_LAYOUTS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
"""Set to "true" where accelerate's configuration asks for what llmkit does in another way."""
DEFAULT_STAGE = "2"
"""Of accelerate, for a DeepSpeed configuration that names none."""


class Said(NamedTuple):
    """A value of accelerate's configuration: its name there, and where it stands."""

    name: str
    value: Any
    place: str

    def __str__(self) -> str:
        return f"{self.name} {self.value} ({self.place})"


@dataclass(frozen=True)
class Accelerate:
    """What accelerate's configuration says; None where it says nothing.

    A value is nothing, too, where accelerate writes it unasked: mixed_precision "no", one accumulation
    step, "auto".
    """

    zero_stage: Said | None = None
    offload_optimizer: Said | None = None
    offload_param: Said | None = None
    mixed_precision: Said | None = None
    accumulation: Said | None = None
    clipping: Said | None = None
    micro_batch: Said | None = None


def uses_deepspeed(environment: Mapping[str, str]) -> bool:
    """Whether accelerate's configuration is of the type DEEPSPEED."""
    return environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def read_accelerate(environment: Mapping[str, str]) -> Accelerate:
    """What the launcher said; nothing where this process was started in another way.

    Raises UserError for what llmkit does not do: FSDP, fp16, a DeepSpeed file with an optimizer, ...
    """
    for variable, layout in OTHER_LAYOUTS.items():
        if environment.get(variable, "").lower() == "true":
            raise UserError(
                f"accelerate's configuration is for {layout} ({variable}), which llmkit does not use: "
                "ZeRO shares out the state, parallel.tensor_parallel_size cuts the layers; "
                "launch with one of the files in launch/"
            )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError(
            f"accelerate's configuration says dynamo_backend {environment['ACCELERATE_DYNAMO_BACKEND']}; "
            "take it out: kernels.compile decides"
        )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    found: dict[str, Said] = {}
    if precision != "no":
        found["mixed_precision"] = Said("mixed_precision", precision, "ACCELERATE_MIXED_PRECISION")
    if uses_deepspeed(environment):
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        entries = _of_file(Path(file)) if file else _of_environment(environment)
        found |= {field: said for field, said in entries if said.value not in (None, "auto")}
    if (accumulation := found.get("accumulation")) and number(accumulation) == 1:
        del found["accumulation"]
    if (said := found.get("mixed_precision")) and said.value != "bf16":
        raise UserError(f"accelerate's configuration says {said}; llmkit trains in bf16 or fp32")
    return Accelerate(**found)


def _of_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, Said]]:
    """(field of Accelerate, what is said) of a DeepSpeed configuration in accelerate's own YAML."""
    variables = {
        "zero_stage": ("zero_stage", "DEEPSPEED_ZERO_STAGE", DEFAULT_STAGE),
        "offload_optimizer": ("offload_optimizer_device", "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
        "offload_param": ("offload_param_device", "DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        "accumulation": ("gradient_accumulation_steps", "GRADIENT_ACCUMULATION_STEPS", None),
        "clipping": ("gradient_clipping", "GRADIENT_CLIPPING", None),
    }
    for field, (name, variable, default) in variables.items():
        place = f"ACCELERATE_{variable}"
        yield field, Said(name, environment.get(place, default), place)


def _of_file(path: Path) -> Iterator[tuple[str, Said]]:
    """The same of a DeepSpeed JSON file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}, the deepspeed_config_file of accelerate's configuration, cannot be read: {error}"
        ) from error
    for key in ("optimizer", "scheduler"):
        if key in content:
            raise UserError(
                f'{path}: take "{key}" out: llmkit writes DeepSpeed\'s settings from the sections '
                "optimizer and schedule of its own configuration"
            )
    keys = {
        "zero_stage": ("zero_optimization", "stage"),
        "offload_optimizer": ("zero_optimization", "offload_optimizer", "device"),
        "offload_param": ("zero_optimization", "offload_param", "device"),
        "accumulation": ("gradient_accumulation_steps",),
        "clipping": ("gradient_clipping",),
        "micro_batch": ("train_micro_batch_size_per_gpu",),
    }
    defaults = {"zero_stage": 0, "offload_optimizer": "none", "offload_param": "none"}
    for field, parts in keys.items():
        value = content
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else None
        yield field, Said(".".join(parts), defaults.get(field) if value is None else value, str(path))
    for name in ("bf16", "fp16"):
        if isinstance(content.get(name), dict) and content[name].get("enabled") is True:
            yield "mixed_precision", Said("mixed_precision", name, f"{name}.enabled in {path}")


def number(said: Said) -> float:
    """The number that is said. Raises UserError if it is none."""
    try:
        return float(said.value)
    except (TypeError, ValueError) as error:
        raise UserError(f"accelerate's configuration says {said}, which is no number") from error
