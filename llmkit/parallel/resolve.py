"""Settles how a run is spread over its processes: the settings, and what accelerate's configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llmkit.config.mistakes import display
from llmkit.config.schema import Config
from llmkit.errors import UserError
from llmkit.parallel.accelerate import Accelerate, Said, number, read_accelerate, uses_deepspeed
from llmkit.parallel.layout import Layout


def needs_deepspeed(config: Config, environment: Mapping[str, str]) -> bool:
    """Whether DeepSpeed may be at work: it must be known before processes join."""
    stage = config.parallel.zero_stage
    return uses_deepspeed(environment) if stage == "auto" else stage > 0


def resolve_layout(
    config: Config, origins: Mapping[str, str], environment: Mapping[str, str], world_size: int
) -> Layout:
    """The layout of `world_size` processes.

    origins: of each setting, as in Loaded. Raises UserError where accelerate's configuration contradicts
    the settings, naming both values with their places.
    """
    parallel = config.parallel
    settled = _Settled(config, origins, read_accelerate(environment))
    layout = Layout(
        world_size=world_size,
        tensor_parallel_size=parallel.tensor_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        zero_stage=settled.zero_stage(),
        offload=settled.offload(),
        recompute=parallel.activation_checkpointing,
        recompute_every=parallel.checkpoint_every,
    )
    settled.check_training()
    return layout


def resolve_precision(config: Config, origins: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """train.precision; where that is auto, bf16 if accelerate's mixed_precision is.

    Raises UserError for a contradiction.
    """
    said = read_accelerate(environment).mixed_precision
    if said is None:
        return config.train.precision
    if config.train.precision == "fp32":
        raise _Settled(config, origins, Accelerate()).contradiction("train.precision", said)
    return "bf16"


class _Settled:
    """The settings beside what accelerate says."""

    def __init__(self, config: Config, origins: Mapping[str, str], accelerate: Accelerate) -> None:
        self.config, self.origins, self.accelerate = config, origins, accelerate

    def zero_stage(self) -> int:
        """The stage of the settings, else accelerate's, else 0."""
        stage, said = self.config.parallel.zero_stage, self.accelerate.zero_stage
        if said is None:
            return 0 if stage == "auto" else stage
        if (named := number(said)) not in (0, 1, 2, 3):
            raise UserError(f"accelerate's configuration says {said}; the stages are 0, 1, 2 and 3")
        if stage not in ("auto", named):
            raise self.contradiction("parallel.zero_stage", said, "or set parallel.zero_stage to auto")
        return int(named)

    def offload(self) -> Literal["none", "cpu"]:
        """What the settings say; where they leave it to the default, what accelerate says."""
        optimizer, weights = self.accelerate.offload_optimizer, self.accelerate.offload_param
        if optimizer is None or weights is None:
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
        if self.origins.get("parallel.offload", "default") == "default":
            return said_offload
        if ours != said_offload:
            raise self.contradiction("parallel.offload", optimizer)
        return ours

    def check_training(self) -> None:
        """Raises UserError where accelerate's configuration sets what the section train decides."""
        train, accelerate = self.config.train, self.accelerate
        if accelerate.accumulation is not None:
            raise UserError(
                f"accelerate's configuration says {accelerate.accumulation}; take it out: the steps follow "
                "from train.global_batch_size and train.micro_batch_size"
            )
        clipping = accelerate.clipping
        if clipping is not None and number(clipping) != train.gradient_clipping:
            raise self.contradiction("train.gradient_clipping", clipping)
        if accelerate.micro_batch is not None and accelerate.micro_batch.value != train.micro_batch_size:
            raise self.contradiction("train.micro_batch_size", accelerate.micro_batch)

    def told(self, path: str) -> str:
        """A setting with its value and where that is from."""
        value: Any = self.config
        for part in path.split("."):
            value = getattr(value, part)
        return f"{path} {display(value)} ({self.origins.get(path, 'default')})"

    def contradiction(self, path: str, said: Said, remedy: str = "") -> UserError:
        """The error that names both."""
        either = f", {remedy}" if remedy else ""
        return UserError(
            f"{self.told(path)} contradicts accelerate's configuration, which says {said}; "
            f"make them agree{either}"
        )
