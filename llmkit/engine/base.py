"""What every engine offers to the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from llmkit.batch import Batch, LossSum
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import Checkpoint
from llmkit.model.gpt import GPT


class StepResult(NamedTuple):
    """Outcome of one optimizer step over the global batch; scalars still on the device.

    loss_sum: nats summed over all targets, fp64.
    targets: how many targets there were (known on the host).
    grad_norm: global L2 norm before clipping, fp32.
    skipped: 1.0 where a non-finite gradient made the update void, else 0.0; fp32.
    """

    loss_sum: Tensor
    targets: int
    grad_norm: Tensor
    skipped: Tensor


class Engine(Protocol):
    """Owns parameters, gradients and optimizer state.

    model: with the weights of now, for sampling.
    """

    model: GPT

    def train_step(self, micro_batches: Sequence[Batch], targets: int, learning_rate: float) -> StepResult:
        """One update: the gradient is that of the summed loss divided by `targets`, the global count."""
        ...

    def evaluate(self, batches: Iterable[Batch]) -> LossSum:
        """Loss of each row without updating anything; rows of all batches behind each other."""
        ...

    def read_pieces(self) -> Iterator[Piece]:
        """Masters and moments, as checkpoint pieces; with `updates` it is the whole state."""
        ...

    def write_pieces(self, checkpoint: Checkpoint, updates: int) -> None:
        """Takes masters and moments from a checkpoint of any layout."""
        ...

    @property
    def updates(self) -> int:
        """Updates applied so far (steps less skipped ones): AdamW's bias correction counts these."""
        ...

    def close(self) -> None:
        """Gives up devices and process groups."""
        ...
