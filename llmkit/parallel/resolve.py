"""Settles how a run is spread over its processes: the settings, and what accelerate's configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from llmkit.config.derive import rows_per_rank
from llmkit.config.schema import Config
from llmkit.config.settings import Settings
from llmkit.errors import UserError
from llmkit.parallel.accelerate import BY_DEFAULT, AccelerateConfig, uses_deepspeed
from llmkit.parallel.deepspeed_keys import RULES, Passed
from llmkit.parallel.launch_setting import LaunchSetting, number
from llmkit.parallel.layout import Layout


def needs_deepspeed(config: Config, environment: Mapping[str, str]) -> bool:
    """Whether DeepSpeed may be at work: it must be known before processes join."""
    stage = config.parallel.zero_stage
    return uses_deepspeed(environment) if stage == "auto" else stage > 0


def resolve_layout(
    config: Config, origins: Mapping[str, str], accelerate: AccelerateConfig, world_size: int
) -> Layout:
    """The layout of `world_size` processes.

    origins: of each setting, as in Loaded. accelerate: what its configuration says. Raises UserError where
    that contradicts the settings, naming both values with their places.
    """
    parallel = config.parallel
    settled = _Resolver(config, origins, accelerate)
    layout = Layout(
        world_size=world_size,
        tensor_parallel_size=parallel.tensor_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        zero_stage=settled.zero_stage(),
        offload=settled.offload(),
        activation_checkpointing=parallel.activation_checkpointing,
        activation_checkpointing_every=parallel.activation_checkpointing_every,
        deepspeed=settled.passed(),
    )
    settled.check_training(max(1, layout.data_parallel_size))
    return layout


def resolve_precision(config: Config, origins: Mapping[str, str], accelerate: AccelerateConfig) -> str:
    """train.precision; where that is auto, what accelerate's configuration says.

    Raises UserError for a contradiction.
    """
    said = accelerate.mixed_precision
    if said is None:
        return config.train.precision
    if config.train.precision not in ("auto", said.value):
        raise _Resolver(config, origins, accelerate).contradiction("train.precision", said)
    return str(said.value)


class _Resolver:
    """The settings beside what accelerate says."""

    def __init__(self, config: Config, origins: Mapping[str, str], accelerate: AccelerateConfig) -> None:
        self.config, self.origins, self.accelerate = config, origins, accelerate
        self.describe = Settings(config, origins).describe

    def zero_stage(self) -> int:
        """The stage of the settings, else accelerate's, else 0."""
        stage, said = self.config.parallel.zero_stage, self.accelerate.zero_stage
        if said is None or (said.place == BY_DEFAULT and stage != "auto"):
            return 0 if stage == "auto" else stage
        if (named := number(said)) not in (0, 1, 2, 3):
            raise UserError(f"accelerate's configuration says {said}; the stages are 0, 1, 2 and 3")
        if stage not in ("auto", named):
            raise self.contradiction("parallel.zero_stage", said, "or set parallel.zero_stage to auto")
        return int(named)

    def offload(self) -> Literal["none", "cpu"]:
        """What the settings say; where they leave it to the default, what accelerate says."""
        optimizer, weights = self.accelerate.offload_optimizer, self.accelerate.offload_param
        given = self.origins.get("parallel.offload", "default") != "default"
        if optimizer is None or weights is None or (given and optimizer.place == weights.place == BY_DEFAULT):
            return self.config.parallel.offload
        for said in (optimizer, weights):
            if said.value not in ("none", "cpu"):
                raise UserError(f"accelerate's configuration says {said}; llmkit knows none and cpu")
        if weights.value == "cpu" and (optimizer.value != "cpu" or self.zero_stage() < 3):
            raise UserError(
                f"accelerate's configuration says {weights}: weights lie in the host's memory only at "
                "ZeRO stage 3, and only together with the optimizer's state"
            )
        if optimizer.value == "cpu" and weights.value == "none" and self.zero_stage() == 3:
            raise UserError(
                f"accelerate's configuration says {optimizer} and {weights}: at ZeRO stage 3 both go together"
            )
        said_offload: Literal["none", "cpu"] = "cpu" if optimizer.value == "cpu" else "none"
        ours = self.config.parallel.offload
        if not given:
            return said_offload
        if ours != said_offload:
            raise self.contradiction("parallel.offload", optimizer)
        return ours

    def passed(self) -> dict[str, int | bool]:
        """What goes to DeepSpeed as it is. Raises UserError for what the stage does not use."""
        accelerate, stage, found = self.accelerate, self.zero_stage(), {}
        devices = {
            "zero_optimization.offload_optimizer.pin_memory": accelerate.offload_optimizer,
            "zero_optimization.offload_param.pin_memory": accelerate.offload_param,
        }
        for key, said in accelerate.passed.items():
            rule, device = RULES[key], devices.get(key)
            assert isinstance(rule, Passed)
            if device is not None and device.value == "none":
                continue  # a section that DeepSpeed itself does not read
            if stage not in rule.stages:
                stages = " and ".join(map(str, rule.stages))
                raise UserError(
                    f"accelerate's configuration says {said}, which is for ZeRO stage {stages}, but the "
                    f"stage is {stage}; take it out"
                )
            found[key] = said.value
        return found

    def check_training(self, data_parallel_size: int) -> None:
        """Raises UserError where accelerate's configuration contradicts the section train."""
        train, accelerate = self.config.train, self.accelerate
        if (said := accelerate.accumulation) is not None:
            rows, micro = rows_per_rank(self.config, data_parallel_size), train.micro_batch_size
            steps = "auto" if micro == "auto" else rows / micro
            if number(said) != steps:
                what = f"which make {steps:g}" if isinstance(steps, float) else "as they fit into memory"
                raise UserError(
                    f"accelerate's configuration says {said}; take it out: the steps follow from "
                    f"{self.describe('train.global_batch_size')} and "
                    f"{self.describe('train.micro_batch_size')}, {what}"
                )
        compared = (
            ("train.gradient_clipping", accelerate.clipping, train.gradient_clipping),
            ("train.global_batch_size", accelerate.global_batch, train.global_batch_size),
            ("train.micro_batch_size", accelerate.micro_batch, train.micro_batch_size),
        )
        for path, told, ours in compared:
            if told is not None and number(told) != ours:
                raise self.contradiction(path, told)

    def contradiction(self, path: str, said: LaunchSetting, remedy: str = "") -> UserError:
        """The error that names both."""
        either = f", {remedy}" if remedy else ""
        return UserError(
            f"{self.describe(path)} contradicts accelerate's configuration, which says {said}; "
            f"make them agree{either}"
        )
