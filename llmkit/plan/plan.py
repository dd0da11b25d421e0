"""What a plan holds, and what it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from llmkit.config.adapters import trained_tensors
from llmkit.config.custom_model import AnyModel
from llmkit.config.derive import rows_per_rank
from llmkit.config.groups import describe_groups
from llmkit.config.memory import checkpoint_bytes, kept_tensors
from llmkit.config.parameters import FullTensor, count_elements
from llmkit.config.schema import Config
from llmkit.parallel.accelerate import AccelerateConfig
from llmkit.parallel.layout import Layout
from llmkit.plan.facts import DeviceFacts
from llmkit.plan.form_rules import Choice
from llmkit.plan.state_memory import State, state_memory
from llmkit.precision import Precision


@dataclass(frozen=True)
class Known:
    """What is known beside the settings; None = not yet.

    world_size: processes of the run. accelerate: the launcher's configuration. tokenizer_size: tokens of the
    tokenizer. holds_out: whether the data have held-out documents. attention: the form that was measured or
    recorded.
    """

    world_size: int | None = None
    accelerate: AccelerateConfig | None = None
    tokenizer_size: int | None = None
    holds_out: bool | None = None
    device: DeviceFacts | None = None
    attention: Choice | None = None


@dataclass(frozen=True)
class Kernels:
    """How the heavy operators are computed.

    compiled: whether torch.compile is used. operators: the form of each, by `llmkit.plan.operators`. notes:
    why something that was left open is not used. eager_blocks: whether those blocks are not
    compiled that are recomputed under ZeRO-3, or have experts that are dealt out.
    uncompiled: why torch.compile is not used, where it is not.
    timed: the forms of attention of which the fastest is found by measuring (`timed_forms`).
    off: why fast kernels are not used.
    fused_ring: whether the device has a fused kernel for blocks of a ring without masks.
    """

    compiled: bool
    operators: Mapping[str, Choice]
    notes: tuple[str, ...] = ()
    eager_blocks: bool = False
    uncompiled: str = "as given"
    timed: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    fused_ring: bool = True

    @property
    def blocks_compiled(self) -> bool:
        """Whether all blocks are compiled."""
        return self.compiled and not self.eager_blocks

    @property
    def forms(self) -> dict[str, str]:
        """Operator -> form, as `llmkit.kernels.operators.Operators.of` takes it."""
        return {operator: choice.form for operator, choice in self.operators.items()}

    @property
    def in_use(self) -> dict[str, str]:
        """For a checkpoint: the forms, and whether torch.compile is used."""
        return {**self.forms, "torch.compile": "yes" if self.compiled else "no"}


@dataclass(frozen=True)
class Plan:
    """A run with every number resolved; made by `resolve_plan` alone.

    pending: the values that are not final, as not everything was known (`Known`), and when they will be.
    Until then each is the least that it can be (the vocabulary of a tokenizer still to be trained: the most).
    """

    config: Config
    model: AnyModel
    layout: Layout
    precision: Precision
    micro_batch_size: int
    """Sequences of a forward pass of one data-parallel rank."""
    accumulation_steps: int
    """Micro-batches of a data-parallel rank and optimizer step."""
    kernels: Kernels
    notes: tuple[str, ...] = ()
    """What of the launcher's configuration has no effect."""
    pending: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows_per_rank(self) -> int:
        """Sequences of a data-parallel rank and step, padding sequences included."""
        return rows_per_rank(self.config, self.layout.data_parallel_size)

    @property
    def padding_rows(self) -> int:
        """Sequences of a step that only fill: where the ranks do not divide the global batch."""
        return self.rows_per_rank * self.layout.data_parallel_size - self.config.train.global_batch_size

    @cached_property
    def trained(self) -> tuple[FullTensor, ...]:
        """The full tensors that are trained."""
        return trained_tensors(self.model.tensors, self.config.train.lora)

    @property
    def num_trained(self) -> int:
        """Elements of the full tensors that are trained."""
        return count_elements(self.trained)

    @property
    def kept_tensors(self) -> float:
        """Moments, and the moving average, per trained parameter; see `llmkit.config.memory.kept_tensors`."""
        return kept_tensors(self.trained, self.config.optimizer, self.config.train.ema)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: fp32 values of all that is trained, with what is kept beside them."""
        return int(checkpoint_bytes(self.kept_tensors) * self.num_trained)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step, over all ranks."""
        return self.config.train.global_batch_size * self.config.data.row_length

    @cached_property
    def state(self) -> State:
        """Bytes of one process for weights, gradients, masters and moments."""
        return state_memory(self.config, self.model, self.precision, self.layout)

    def require_complete(self) -> None:
        """Raises ValueError where something is still pending."""
        if self.pending:
            raise ValueError(f"the plan is not complete: {dict(self.pending)}")

    def to_json(self) -> dict[str, Any]:
        """For manifest.json."""
        return {
            "precision": self.precision.name,
            "number_types": {name: kind for name, kind in asdict(self.precision).items() if name != "name"},
            "micro_batch_size": self.micro_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "layout": self.layout.to_dict(),
            "kernels": {
                "compiled": self.kernels.compiled,
                "operators": {
                    choice.operator: {"form": choice.form, "reason": choice.reason}
                    for choice in self.kernels.operators.values()
                },
            },
            "model": self.model.to_dict(),
            "parameter_groups": describe_groups(self.config.optimizer, self.trained),
            "max_steps": self.config.train.max_steps,
        }

    def facts(self) -> dict[str, str]:
        """What all ranks must have alike, each value as text: parts come from files that each node reads."""
        layout = {f"layout.{name}": str(value) for name, value in self.layout.to_dict().items()}
        chosen = {name: str(value) for name, value in self.to_json().items() if not isinstance(value, dict)}
        how = {"compiled": self.kernels.compiled, "notes": self.kernels.notes, **self.kernels.forms}
        kernels = {f"kernels.{name}": str(value) for name, value in how.items()}
        return layout | chosen | kernels
