"""What engines measure layer by layer in a step that is to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmkit.engine.layer_outputs import LayerOutputs
from llmkit.engine.layer_sums import LayerSums, layer_of
from llmkit.optim.build import Held
from llmkit.parallel.mesh import Mesh


class LayerStatistics(NamedTuple):
    """Sums over the global batch and over all ranks, still on the device.

    layers: names of those that have trained parameters. sums: (layers, COLUMNS), see `LayerSums`; NaN where
    the update was skipped. outputs: names of the modules whose output was seen. of_outputs: (outputs, 3), see
    `LayerOutputs`.
    """

    layers: Sequence[str]
    sums: Tensor
    outputs: Sequence[str]
    of_outputs: Tensor


class LayerMeter:
    """Measures steps of one engine: `watched` around the forward passes, `sums` around the update.

    trained: names of the parameters that are trained. held, dims: as of `LayerSums`.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Sequence[str],
        held: Sequence[Held],
        dims: Mapping[str, tuple[str, ...]],
        mesh: Mesh,
    ) -> None:
        layers = dict.fromkeys(layer_of(name) for name, _ in model.named_parameters())
        self.outputs = LayerOutputs(model, list(layers), mesh)
        self.sums = LayerSums(trained, held, dims, mesh, next(model.parameters()).device)

    @contextmanager
    def watched(self, measure: bool) -> Iterator[None]:
        """Around the forward passes of a step; does nothing where it is not to be measured."""
        if not measure:
            yield
            return
        self.sums.start()
        with self.outputs.watched():
            yield

    def finish(self, skipped: Tensor) -> LayerStatistics:
        """What was measured, once the update has been made. Collective; nothing waits for the device."""
        sums = torch.where(skipped > 0.0, torch.nan, self.sums.finish())
        return LayerStatistics(self.sums.layers, sums, self.outputs.names, self.outputs.finish())
