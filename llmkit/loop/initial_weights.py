"""The weights that a new run starts from (`train.init_from`), as its engine takes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.checkpoint.named import named
from llmkit.checkpoint.read import Checkpoint, newest
from llmkit.config.custom_model import AnyModel
from llmkit.config.mistakes import listed
from llmkit.config.schema import Config
from llmkit.engine.state_shards import Source
from llmkit.errors import UserError
from llmkit.model.build import build_model
from llmkit.model.initial import InitialWeights
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import Box, Range, Shape, box_shape, box_size, full_box
from llmkit.weights import CheckpointWeights, Weights, base_path, look_at, model_of, weights_of

MEAN_ROWS = 4096
"""Rows of a vocabulary that are read at a time for their mean."""


@dataclass
class StartingWeights(Source):
    """Stored weights as the state of an engine before its first step; each read takes a region's memory.

    digest: of the weights. known: tokens that they know. Where the model knows more, `grow` says so, and the
    rows of the others are the mean of the stored ones, so that they are neither likely nor unlikely.
    """

    weights: Weights
    digest: str
    known: int
    _shapes: Mapping[str, Shape] = field(default_factory=dict)
    _means: dict[str, Tensor] = field(default_factory=dict)

    def fit(self, model: AnyModel, adapts: bool = False) -> None:
        """Prepares for this model. adapts: only adapters are to be trained.

        Raises UserError where it has other tensors than are stored, or rows of tokens that nothing trains.
        """
        if adapts and model.vocab_size != self.known:
            raise UserError(
                f"train.lora: the model would know {model.vocab_size} tokens, and {self.weights.path} knows "
                f"{self.known}: adapters leave the embedding as it is, so rows of new tokens would never be "
                "trained; take the tokenizer of the weights (data.tokenizer.type: init_from)"
            )
        with torch.device("meta"):
            made = build_model(model)
            self._shapes = InitialWeights(made, 0).shapes
        stored = {name: self.weights.shape(name) for name in self.weights.names()}
        for name in made.full_buffers():  # those that are not stored begin as in a new model
            if name not in stored:
                self._shapes = {each: shape for each, shape in self._shapes.items() if each != name}
        unlike = [
            f"{name} {stored.get(name, 'absent')} -> {self._shapes.get(name, 'absent')}"
            for name in dict.fromkeys([*stored, *self._shapes])
            if name not in stored or name not in self._shapes
            or (stored[name] != self._shapes[name] and not self._grows(name, stored[name], model.vocab_size))
        ]  # fmt: skip
        if unlike:
            raise UserError(
                f"train.init_from: {self.weights.path} holds another model: {listed(unlike, 5)} (stored -> "
                "needed); leave the settings of the model out, or name other weights"
            )

    def _grows(self, name: str, stored: Shape, vocab_size: int) -> bool:
        """Whether the model's tensor is the stored one with rows for more tokens."""
        wanted = self._shapes[name]
        return (*stored[:1], *wanted) == (self.known, vocab_size, *stored[1:]) and vocab_size > self.known

    def names(self, kind: str) -> Collection[str]:
        """The full tensors; there are no moments."""
        return self._shapes if kind == "master" else ()

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """See `llmkit.engine.state_shards.Source`."""
        assert kind == "master", kind
        box = full_box(self._shapes[name]) if box is None else box
        if range is None or not box:
            values = self._region(name, box)
            return values if range is None else values.view(-1)
        row = box_size(box[1:])
        first, end = range[0] // row, -(-range[1] // row)  # of the box: no more is read than these rows
        values = self._region(name, ((box[0][0] + first, box[0][0] + end), *box[1:]))
        return values.reshape(-1)[range[0] - first * row : range[1] - first * row]

    def _region(self, name: str, box: Box) -> Tensor:
        """A region of the model's tensor, fp32."""
        stored = self.weights.shape(name)
        if stored == self._shapes[name] or box[0][1] <= stored[0]:
            return self._finite(name, box)
        out = torch.empty(box_shape(box))
        old = max(0, stored[0] - box[0][0])
        if old:
            out[:old] = self._finite(name, ((box[0][0], stored[0]), *box[1:]))
        out[old:] = self._mean(name, stored)[tuple(slice(*each) for each in box[1:])]
        return out

    def _finite(self, name: str, box: Box) -> Tensor:
        """A region of the stored tensor, fp32. Raises UserError where it holds NaN or infinity."""
        values = self.weights.read(name, box).float()
        if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():  # the sum costs no memory
            raise UserError(
                f"train.init_from: {name} of {self.weights.path} has values that are not finite: "
                "the training that made it has diverged; name an earlier checkpoint"
            )
        return values

    def _mean(self, name: str, stored: Shape) -> Tensor:
        """The mean of the stored rows, fp32; they are summed in fp64, a few at a time."""
        if name not in self._means:
            total = torch.zeros(stored[1:], dtype=torch.float64)
            for first in range(0, stored[0], MEAN_ROWS):
                rows = (first, min(first + MEAN_ROWS, stored[0]))
                total += self.weights.read(name, (rows, *full_box(stored[1:]))).double().sum(0)
            self._means[name] = (total / stored[0]).float()
        return self._means[name]

    def record(self) -> dict[str, Any]:
        """What is kept of it in the run's record: the folder that was read, and what was in it."""
        return {"path": str(self.weights.path.absolute()), "digest": self.digest}


def open_initial(
    config: Config, mesh: Mesh, checkpoint: Checkpoint | None, note: Callable[[str], None]
) -> StartingWeights | None:
    """The weights that `train.init_from` names; None where it names none, or the run has its own. Collective.

    Of a run folder that is the newest checkpoint that verifies, of which the ranks read a share each.
    checkpoint: from which the run goes on. Where it holds adapters alone, the weights that they were trained
    on are needed again: those, and no others.
    Raises UserError on all ranks where one of them finds no weights, or others.
    """
    if config.train.init_from is None or (checkpoint is not None and not config.train.lora.rank):
        return None
    before = {} if checkpoint is None else checkpoint.state.get("init_from", {})
    with fail_together(mesh):
        path = named(Path(config.train.init_from)) if checkpoint is None else base_path(checkpoint)
        weights = look_at(path)
    if isinstance(weights, CheckpointWeights) and weights.path != path:
        found = newest(weights.path.parent, note, mesh)
        if found is None:
            raise UserError(f"train.init_from: none of the checkpoints in {weights.path.parent} is good")
        weights = CheckpointWeights(found)
    if isinstance(weights, CheckpointWeights):
        weights = weights_of(weights.checkpoint, mesh)
    digest = on_rank_zero(mesh, weights.digest)
    if digest != before.get("digest", digest):
        raise UserError(
            f"train.init_from: {weights.path} holds other weights than those that the adapters of this run "
            f"were trained on ({before['path']}, digest {before['digest']}, now {digest}); bring these back"
        )
    return StartingWeights(weights, digest, model_of(weights).vocab_size)
