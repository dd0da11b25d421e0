"""The base class of models: `forward(batch) -> LossSum` is the only duty, the rest has defaults."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmkit.batch import Batch, LossSum
from llmkit.errors import UserError
from llmkit.model.cache import KeyValueCache
from llmkit.model.layers import Layer
from llmkit.parallel.slices import ParameterSlice, Shape, full_slice


class Initial(NamedTuple):
    """Distribution of a tensor's initial values: normal with this mean and standard deviation."""

    mean: float
    std: float


class Model(nn.Module):
    """Base class of all models; a subclass must define `forward(batch) -> LossSum`.

    Built of ordinary modules it trains on one device, under DDP and under ZeRO 1 to 3; built of
    `llmkit.layers` alone, under tensor parallelism too. Parameters are fp32 when the constructor ends, and
    their values do not matter: `initial` says what they start with. Buffers must not be persistent, since
    checkpoints hold parameters only.
    """

    vocab_size: int
    """Tokens the model knows; needed only to sample from it."""
    context_length: int
    """Most tokens that it can attend to; needed only to sample from it."""
    has_weights: bool = True
    """Whether the parameters have values; engines set it once they have written them."""

    @property
    def has_dropout(self) -> bool:
        """Whether the model computes something else in evaluation mode than in training mode."""
        return True

    def forward(self, batch: Batch) -> LossSum:
        """The loss of each sequence, summed over its targets; see `LossSum`."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(batch) -> LossSum")

    def __call__(self, batch: Batch) -> LossSum:
        """Runs `forward`; raises UserError where its result is no LossSum of this batch."""
        return check_loss(super().__call__(batch), batch, type(self).__name__)

    def parameter_slices(self) -> dict[str, list[ParameterSlice]]:
        """For each parameter, the named tensors of which parts lie in it (see llmkit.parallel.slices).

        A `Layer` says it of its own parameters; any other parameter is one full tensor.
        """
        found = {
            f"{path}.{kind}": parts
            for path, module in self.named_modules()
            if isinstance(module, Layer)
            for kind, parts in module.parameter_slices(path).items()
        }
        return {
            name: found.get(name) or [full_slice(name, parameter_shape(parameter))]
            for name, parameter in self.named_parameters()
        }

    def initial(self, name: str, shape: Shape) -> Initial:
        """How the full tensor `name` of this shape starts.

        Default: normal with standard deviation 0.02 from two dimensions on; else zeros for names that end
        in "bias", and ones for others. The values depend on (run.seed, name, element) alone, so that every
        layout starts alike.
        """
        if len(shape) >= 2:
            return Initial(0.0, 0.02)
        return Initial(0.0 if name.endswith("bias") else 1.0, 0.0)

    def logits(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits of what follows the last token: (batch, seq) -> (batch, vocab), fp32. Needed only to sample.

        cache: what `new_cache` made; with one, `tokens` are only those that it does not hold yet.
        """
        raise UserError(f"{type(self).__name__} defines no logits(tokens), so there is no sampling from it")

    def new_cache(self) -> KeyValueCache | None:
        """An empty cache for sampling one sequence; None where the model keeps none."""
        return None


def parameter_shape(parameter: nn.Parameter) -> Shape:
    """The shape of a parameter; under ZeRO-3 it is empty while not in use, and DeepSpeed keeps its shape."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def check_loss(loss: object, batch: Batch, model: str) -> LossSum:
    """`loss`, if it is a LossSum of the batch. Raises UserError that names the model and what is wrong.

    Looks at types, shapes and devices only: nothing waits for the device.
    """
    rows = len(batch.tokens)
    must = f"forward(batch) of {model} must return llmkit.LossSum(nats, targets), sums over each of the"
    must += f" {rows} sequences"
    if not isinstance(loss, LossSum):
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"{must}; it returned {what}")
    for name, value, kind in (("nats", loss.nats, "floating"), ("targets", loss.targets, "integer")):
        if not isinstance(value, Tensor) or value.shape != (rows,):
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{must}; its {name} must be a tensor of shape ({rows},), and is {found}")
        if (kind == "floating") != value.is_floating_point():
            raise UserError(f"{must}; its {name} must be of a {kind} type, and is {value.dtype}")
    if loss.nats.dtype != torch.float32:
        raise UserError(f"{must}; its nats must be summed in float32, and are {loss.nats.dtype}")
    for name, extra in loss.extras.items():
        if not isinstance(extra, Tensor) or extra.dim():
            raise UserError(f"{must}; its extra {name!r} must be a tensor without dimensions")
    return loss
