"""Resolves a run's layout and precision from the settings and the launcher's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from llmkit.config.context import context_form
from llmkit.config.derive import accumulation_steps
from llmkit.config.mistakes import Mistake
from llmkit.config.schema import Config
from llmkit.config.settings import Settings
from llmkit.parallel.accelerate import BY_DEFAULT, AccelerateConfig
from llmkit.parallel.deepspeed_keys import RULES, Passed
from llmkit.parallel.launch_setting import LaunchSetting
from llmkit.parallel.layout import Layout, usual_engine


class LaunchResolver:
    """Combines the settings with accelerate's configuration.

    mistakes: every contradiction found so far; each names both values with their locations.
    """

    def __init__(self, config: Config, origins: Mapping[str, str], accelerate: AccelerateConfig) -> None:
        self.config, self.origins, self.accelerate = config, origins, accelerate
        self.describe = Settings(config, origins).describe
        self.mistakes: list[Mistake] = list(accelerate.mistakes)

    def layout(self, world_size: int) -> Layout:
        """The layout of `world_size` processes."""
        parallel, stage = self.config.parallel, self._zero_stage()
        offload = self._offload(stage)
        layout = Layout(
            world_size=world_size,
            tensor_parallel_size=parallel.tensor_parallel_size,
            sequence_parallel=parallel.sequence_parallel,
            zero_stage=stage,
            offload=offload,
            activation_checkpointing=parallel.activation_checkpointing,
            activation_checkpointing_every=parallel.activation_checkpointing_every,
            deepspeed=self._passed(stage),
            engine=self._engine(stage, offload),
            context_parallel_size=parallel.context_parallel_size,
            context_parallel_form=context_form(self.config),
            expert_parallel_size=parallel.expert_parallel_size,
            offload_activations=parallel.offload_activations,
        )
        self._check_training(max(1, layout.data_parallel_size))
        return layout

    def precision(self) -> str:
        """train.precision; where that is auto, what accelerate's configuration says."""
        asked, setting = self.config.train.precision, self.accelerate.mixed_precision
        if setting is None:
            return asked
        if asked == "fp8" and setting.value == "bf16":  # as the weights are
            return asked
        if asked not in ("auto", setting.value):
            self._contradiction("train.precision", setting)
        return str(setting.value)

    def _zero_stage(self) -> int:
        """The stage of the settings, else accelerate's, else 0."""
        stage, setting = self.config.parallel.zero_stage, self.accelerate.zero_stage
        ours = 0 if stage == "auto" else stage
        if setting is None or (setting.location == BY_DEFAULT and stage != "auto"):
            return ours
        if (named := self._number(setting)) not in (0, 1, 2, 3):
            if named is not None:
                self._wrong(setting, "the stages are 0, 1, 2 and 3")
            return ours
        if stage not in ("auto", named):
            self._contradiction("parallel.zero_stage", setting, ", or set parallel.zero_stage to auto")
            return ours
        return int(named)

    def _engine(self, stage: int, offload: str) -> Literal["native", "deepspeed"]:
        """What trains; whether it can is checked by `llmkit.config.check_layout`."""
        asked, said = self.config.parallel.engine, self.accelerate.zero_stage
        if asked == "native" and said is not None and stage in (1, 2):
            self._contradiction("parallel.engine", said, ", or set parallel.engine to auto")
        if asked != "auto":
            return asked
        if stage == 0 or said is not None:
            return "native" if stage == 0 else "deepspeed"
        return usual_engine(stage, offload, self.config.parallel.expert_parallel_size)

    def _offload(self, stage: int) -> Literal["none", "cpu"]:
        """What the settings say; where they leave it to the default, what accelerate says."""
        optimizer, weights = self.accelerate.offload_optimizer, self.accelerate.offload_param
        ours, given = self.config.parallel.offload, self._is_given("parallel.offload")
        if (
            optimizer is None
            or weights is None
            or (given and optimizer.location == weights.location == BY_DEFAULT)
        ):
            return ours
        unknown = [setting for setting in (optimizer, weights) if setting.value not in ("none", "cpu")]
        for setting in unknown:
            self._wrong(setting, "llmkit knows none and cpu")
        if unknown:
            return ours
        if weights.value == "cpu" and (optimizer.value != "cpu" or stage < 3):
            self._wrong(
                weights,
                "weights lie in the host's memory only at ZeRO stage 3, and only together with the "
                "optimizer's state",
            )
        if optimizer.value == "cpu" and weights.value == "none" and stage == 3:
            self._wrong(optimizer, f"at ZeRO stage 3 both go together, but there is {weights}")
        theirs: Literal["none", "cpu"] = "cpu" if optimizer.value == "cpu" else "none"
        if given and ours != theirs:
            self._contradiction("parallel.offload", optimizer)
        return ours if given else theirs

    def _passed(self, stage: int) -> dict[str, int | bool]:
        """What goes to DeepSpeed as it is."""
        accelerate, found = self.accelerate, {}
        devices = {
            "zero_optimization.offload_optimizer.pin_memory": accelerate.offload_optimizer,
            "zero_optimization.offload_param.pin_memory": accelerate.offload_param,
        }
        for key, setting in accelerate.passed.items():
            rule, device = RULES[key], devices.get(key)
            assert isinstance(rule, Passed)
            if device is not None and device.value == "none":
                continue  # a section that DeepSpeed itself does not read
            if stage not in rule.stages:
                stages = " and ".join(map(str, rule.stages))
                self._wrong(setting, f"it is for ZeRO stage {stages}, but the stage is {stage}; take it out")
            found[key] = setting.value
        return found

    def _check_training(self, data_parallel_size: int) -> None:
        """Whether accelerate's configuration contradicts the section train."""
        train, accelerate = self.config.train, self.accelerate
        if (setting := accelerate.accumulation) is not None:
            micro, steps = train.micro_batch_size, None
            if micro != "auto":
                steps = accumulation_steps(self.config, data_parallel_size, micro)
            if self._number(setting) not in (None, steps):
                what = "as they fit into memory" if steps is None else f"which make {steps}"
                self._wrong(
                    setting,
                    f"take it out: the steps follow from {self.describe('train.global_batch_size')} and "
                    f"{self.describe('train.micro_batch_size')}, {what}",
                )
        compared = (
            ("train.gradient_clipping", accelerate.clipping, train.gradient_clipping),
            ("train.global_batch_size", accelerate.global_batch, train.global_batch_size),
            ("train.micro_batch_size", accelerate.micro_batch, train.micro_batch_size),
        )
        for path, theirs, ours in compared:
            if theirs is not None and self._number(theirs) not in (None, ours):
                self._contradiction(path, theirs)

    def _is_given(self, path: str) -> bool:
        return self.origins.get(path, "default") != "default"

    def _number(self, setting: LaunchSetting) -> float | None:
        """The value as a number; None, with the mistake noted, if it is none."""
        if setting.number is None:
            self._wrong(setting, "it must be a number")
        return setting.number

    def _wrong(self, setting: LaunchSetting, reason: str) -> None:
        """Notes a value of accelerate's configuration that cannot be followed."""
        self.mistakes.append(setting.mistake(reason))

    def _contradiction(self, path: str, setting: LaunchSetting, or_else: str = "") -> None:
        """Notes a setting that accelerate's configuration contradicts."""
        what = f"{self.describe(path)} contradicts accelerate's configuration, which says {setting}"
        self.mistakes.append(Mistake("", what, f"make them agree{or_else}", (path,)))
