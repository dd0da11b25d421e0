"""The base class of models: `forward(batch) -> LossSum` is the only duty, the rest has defaults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from llmkit.batch import Batch, LossSum
from llmkit.config.custom_model import CustomModel
from llmkit.config.parameters import FullTensor
from llmkit.errors import UserError
from llmkit.kernels.head_loss import CROSS_ENTROPY, LossTerms
from llmkit.kernels.operators import TORCH, Operators
from llmkit.kernels.quantised import QuantisedWeight
from llmkit.model.cache import KeyValueCache
from llmkit.model.layers import FusedColumnLinear, Layer, RowLinear
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, Shape, full_slice

ALONE = TensorParallel()


class Initial(NamedTuple):
    """Distribution of a tensor's initial values: normal with this mean and standard deviation."""

    mean: float
    std: float


@dataclass(frozen=True)
class ModelContext:
    """What a registered model is built for, beside its settings.

    vocab_size: tokens it must know. sequence_length: tokens of a sequence. operators: the
    functions that the run has chosen for its arithmetic (`operators.attention`, ...). tp: the ranks that
    share each layer. activation_checkpointing: "none", "selective" or "full", for every n-th block.
    loss_terms: what the run adds to the cross-entropy, for `llmkit.layers.Head`.
    """

    vocab_size: int
    sequence_length: int
    operators: Operators = TORCH
    tp: TensorParallel = ALONE
    activation_checkpointing: str = "none"
    activation_checkpointing_every: int = 1
    loss_terms: LossTerms = CROSS_ENTROPY


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
    supports: ClassVar[tuple[str, ...]] = ()
    """Which of these it uses; a run that asks for another one is refused: "activation_checkpointing" (as the
    context says), "document_masks" (`Batch.documents`), "compile" (by a `compile_parts` of its own),
    "sequence_parallel" (between sharded layers it may hold this rank's piece of the sequence, (seq / tp,
    batch, width): its norms have `context.tp.sequence_group`, and nothing there looks at positions), "z_loss"
    and "label_smoothing" (it gives `context.loss_terms` to its `llmkit.layers.Head`, or computes them)."""
    uses_every_parameter: ClassVar[bool] = False
    """Whether every batch uses every parameter; else DeepSpeed's engine checks that it is so."""
    compiled: bool = False
    """Whether `compile_parts` has compiled anything."""
    evaluating: bool = False
    """Whether an engine computes losses that need no gradient; the mode of modules may still be training."""
    adapted: bool = False
    """Whether only adapters are trained: the frozen weights are read from their base at every start, and are
    in no checkpoint; see `llmkit.model.lora`."""
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
        """Runs `forward`; raises UserError where its result is no LossSum of this batch, or, in training,
        depends on no parameter that requires a gradient."""
        name = type(self).__name__
        loss = check_loss(super().__call__(batch), batch, name)
        needed = self.training and torch.is_grad_enabled() and not self.evaluating
        if needed and not loss.objective.requires_grad:
            raise UserError(
                f"the loss that forward(batch) of {name} returns has no gradient; do not detach it"
            )
        return loss

    def parameter_slices(self) -> dict[str, list[ParameterSlice]]:
        """Name of each parameter -> the slices of full tensors that it holds (see llmkit.parallel.slices).

        A `Layer` defines those of its own parameters; any other parameter is one full tensor.
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

    def quantised_weights(self) -> dict[str, tuple[QuantisedWeight, list[ParameterSlice]]]:
        """Path of each layer whose frozen weight is kept in fewer bits -> that weight, which is no parameter,
        and the slices of full tensors in it."""
        return {
            path: (layer.weight, layer.parameter_slices(path)["weight"])
            for path, layer in self.named_modules()
            if isinstance(layer, FusedColumnLinear | RowLinear) and isinstance(layer.weight, QuantisedWeight)
        }

    def full_shapes(self) -> dict[str, Shape]:
        """Name of each full tensor of which this model has a slice -> its shape."""
        quantised = [parts for _, parts in self.quantised_weights().values()]
        parts = itertools.chain(*self.parameter_slices().values(), *quantised)
        buffers = {name: tuple(buffer.shape) for name, buffer in self.full_buffers().items()}
        return {part.name: part.shape for part in parts} | buffers

    def full_buffers(self) -> dict[str, Tensor]:
        """Name of each full tensor that is state but no parameter -> that tensor, fp32 and whole on every
        rank.

        Checkpoints keep them beside the parameters. They begin at `initial`, and `after_update` changes them.
        """
        return {}

    def after_update(self, routing: Tensor | None, skipped: Tensor) -> None:
        """Is called after each step that had a target, on all ranks alike; nothing by default.

        routing: `LossSum.routing` of the global batch, fp64. skipped: 1.0 where the update was void, else
        0.0.
        """

    def initial(self, name: str, shape: Shape) -> Initial:
        """Distribution of the initial values of the full tensor `name`.

        Default: normal with standard deviation 0.02 from two dimensions on; else zeros for names that end
        in "bias", and ones for others. The values depend on (run.seed, name, element) alone, so that every
        layout starts alike.
        """
        if len(shape) >= 2:
            return Initial(0.0, 0.02)
        return Initial(0.0 if name.endswith("bias") else 1.0, 0.0)

    def hidden_matrices(self) -> frozenset[str]:
        """Names of the parameters that Muon updates: by default all with two dimensions in the entries of
        an `nn.ModuleList` (the repeated blocks), but for embeddings."""
        lists = tuple(
            f"{path}." for path, module in self.named_modules() if isinstance(module, nn.ModuleList)
        )
        embeddings = {f"{path}.weight" for path, m in self.named_modules() if isinstance(m, nn.Embedding)}
        slices = self.parameter_slices()
        hidden = (name for name in slices if name.startswith(lists) and len(slices[name][0].shape) == 2)
        return frozenset(hidden) - embeddings

    def flops_per_token(self, length: int) -> int:
        """FLOPs of forward and backward for a token of a sequence of `length`; 6 x parameters by default."""
        return 6 * self.num_parameters

    @property
    def num_parameters(self) -> int:
        """Elements of all full tensors that are parameters."""
        buffers = self.full_buffers()
        return sum(math.prod(shape) for name, shape in self.full_shapes().items() if name not in buffers)

    def compile_parts(self, report: Callable[[str], None]) -> None:
        """Compiles what is worth it, by `llmkit.kernels.compiler.compile_module`; nothing by default."""

    @classmethod
    def describe(
        cls, settings: Any, vocab_size: int, length: int, tensor_parallel_size: int = 1
    ) -> CustomModel:
        """What is known of the model of these settings before it is built: it is built without memory.

        Raises UserError where a parameter is not in float32.
        """
        with torch.device("meta"):
            tp = TensorParallel(size=tensor_parallel_size)
            try:
                model: Model = cls(settings, ModelContext(vocab_size, length, tp=tp))
            except (NotImplementedError, RuntimeError) as error:
                error.add_note(
                    f"{cls.__name__} is first built on torch's meta device, without values; its "
                    "constructor must not read any"
                )
                raise
        for name, parameter in model.named_parameters():  # at stage 3 DeepSpeed chooses the type later
            if parameter.dtype != torch.float32:
                raise UserError(
                    f"{cls.__name__} makes its parameter {name} in {parameter.dtype}; make it in "
                    "torch.float32: train.precision chooses the type that it is trained in"
                )
        hidden = model.hidden_matrices()
        linear = {
            f"{path}.weight"
            for path, module in model.named_modules()
            if isinstance(module, (FusedColumnLinear, RowLinear)) and f"{path}.weight" in hidden
        }
        owned = {p for module in model.modules() if isinstance(module, Layer) for p in module.parameters()}
        return CustomModel(
            type=settings.type,
            vocab_size=vocab_size,
            max_position_embeddings=length,
            num_parameters=model.num_parameters,
            flops_per_token=model.flops_per_token(length),
            takes_tensor_parallel=owned.issuperset(model.parameters()),
            supports=cls.supports,
            scalars=tuple(name for name, parameter in model.named_parameters() if parameter.dim() == 0),
            tensors=tuple(
                FullTensor(part.name, part.shape, stored in hidden, stored, stored in linear)
                for stored, parts in model.parameter_slices().items()
                for part in parts
            ),
            settings=settings.model_dump(mode="json"),
        )

    def logits(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """Logits of what follows the last token: (batch, seq) -> (batch, vocab), fp32. Needed only to sample.

        cache: `CacheRows` of what `new_cache` made; with them, `tokens` are only those that they do not hold
        yet, and a row with fewer of them than others has padding behind.
        """
        raise UserError(f"{type(self).__name__} defines no logits(tokens), so there is no sampling from it")

    def new_cache(self) -> KeyValueCache | None:
        """An empty cache for sampling; None where the model keeps none."""
        return None


def parameter_shape(parameter: nn.Parameter) -> Shape:
    """The shape of a parameter; under ZeRO-3 it is empty while not in use, and DeepSpeed keeps its shape."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def check_loss(loss: object, batch: Batch, model: str) -> LossSum:
    """`loss`, if it is a LossSum of the batch. Raises UserError that names the model and what is wrong.

    Looks at types, shapes and devices only: nothing waits for the device.
    """
    rows = len(batch.labels)
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
