"""The layout of a run over its processes, every choice resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


def usual_engine(
    zero_stage: int, offload: str, expert_parallel_size: int
) -> Literal["native", "deepspeed"]:
    """What `parallel.engine: auto` takes, unless accelerate's configuration is of the type DEEPSPEED.

    Stage 2 is DeepSpeed's, but where experts are dealt out: that it cannot do.
    """
    most = 2 if expert_parallel_size > 1 else 1
    return "native" if zero_stage <= most and offload == "none" else "deepspeed"


@dataclass(frozen=True)
class Layout:
    """The settings of `parallel`, with nothing left open.

    zero_stage: 0 = nothing is sharded over the data-parallel ranks; 1 shards moments and masters, 2 gradients
    too, 3 weights too. activation_checkpointing, activation_checkpointing_every: which activations are
    computed again in the backward pass, and in which of the blocks (1 = in all, 2 = in every second, ...).
    context_parallel_size, context_parallel_form: ranks that share each row, and how they compute attention.
    offload_activations: whether inputs of blocks that are recomputed in full lie on the host; never on a CPU.
    deepspeed: of a user's DeepSpeed file, what goes to DeepSpeed as it is, by dotted key. engine: what
    trains; the native one knows no stage 3. expert_parallel_size: ranks of data x context over which
    experts are dealt out.
    """

    world_size: int = 1
    tensor_parallel_size: int = 1
    sequence_parallel: bool = False
    zero_stage: int = 0
    offload: Literal["none", "cpu"] = "none"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    activation_checkpointing_every: int = 1
    deepspeed: Mapping[str, int | bool] = field(default_factory=dict)
    engine: Literal["native", "deepspeed"] = "native"
    context_parallel_size: int = 1
    context_parallel_form: Literal["ulysses", "ring"] = "ulysses"
    expert_parallel_size: int = 1
    offload_activations: bool = False

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different rows."""
        return self.world_size // (self.tensor_parallel_size * self.context_parallel_size)

    @property
    def replicas(self) -> int:
        """Ranks that see different tokens: gradients are summed, and ZeRO shares state out, over them."""
        return self.world_size // self.tensor_parallel_size

    @property
    def copies_of_experts(self) -> int:
        """Ranks that hold the same experts, and sum their gradients."""
        return self.replicas // self.expert_parallel_size

    @property
    def in_ring(self) -> bool:
        """Whether keys and values go around ranks that share rows."""
        return self.context_parallel_size > 1 and self.context_parallel_form == "ring"

    @property
    def in_ulysses(self) -> bool:
        """Whether ranks that share rows exchange them for heads around attention."""
        return self.context_parallel_size > 1 and self.context_parallel_form == "ulysses"

    def tokens_of(self, rows: int, length: int) -> int:
        """How many tokens of so many rows a rank computes, at most."""
        return rows * -(-length // self.context_parallel_size)

    @property
    def full_weights(self) -> bool:
        """Whether each process holds all weights of the model between steps, whichever engine trains it."""
        return self.zero_stage < 3 and self.tensor_parallel_size == self.expert_parallel_size == 1

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        return asdict(self)
