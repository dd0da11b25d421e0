"""How large what each layer gives is, in the forward passes of one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.parallel.mesh import DIMENSIONS, Mesh

SQUARES, ELEMENTS, LARGEST = range(3)
"""Columns of the sums."""


class LayerOutputs:
    """Watches the modules of a model whose names are among `layers`; one that gives no tensor is left out.

    Where ranks give the same, as tensor-parallel ones do, all of them count, which changes no mean.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], mesh: Mesh) -> None:
        self._mesh, self._device = mesh, next(model.parameters()).device
        modules = dict(model.named_modules())
        self._modules = {name: modules[name] for name in layers if name in modules}
        self.names = list(self._modules)
        self._sums: dict[str, Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Adds up what the modules give in here; what was added before is forgotten.

        A module's call is replaced, compiled or not: a hook would be compiled with it, and so all anew.
        """
        self._sums = {}
        before = {name: module._compiled_call_impl for name, module in self._modules.items()}
        for name, module in self._modules.items():
            module._compiled_call_impl = self._watching(name, before[name] or module._call_impl)
        try:
            yield
        finally:
            for name, module in self._modules.items():
                module._compiled_call_impl = before[name]

    def _watching(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            given = call(*arguments, **options)
            first = given[0] if type(given) is tuple and given else given  # a LossSum is no plain tuple
            if isinstance(first, Tensor) and first.is_floating_point():
                self._add(name, first.detach())
            return given

        return called

    @torch.no_grad()
    def _add(self, name: str, given: Tensor) -> None:
        # Of the last dimension first: of a whole large tensor a CPU's fp32 norm is off in the third digit.
        norms = torch.linalg.vector_norm(given, dim=-1, dtype=torch.float32).double()
        largest = torch.linalg.vector_norm(given, float("inf"), dtype=torch.float32).double()
        elements = torch.full_like(largest, given.numel())
        found = torch.stack((norms.square().sum(), elements, largest))
        if (before := self._sums.get(name)) is not None:
            found = torch.cat((before[:LARGEST] + found[:LARGEST], torch.maximum(before, found)[LARGEST:]))
        self._sums[name] = found

    def finish(self) -> Tensor:
        """(names, 3) fp64 over all ranks: squares, elements, largest magnitude. Collective."""
        nothing = torch.zeros(3, dtype=torch.float64, device=self._device)
        found = torch.stack([self._sums.get(name, nothing) for name in self.names] or [nothing])
        world = self._mesh[DIMENSIONS]
        sums, largest = found[:, :LARGEST].contiguous(), found[:, LARGEST:].contiguous()
        total = torch.cat((world.sum(sums), world.largest(largest)), 1)
        self._sums = {}
        return total[: len(self.names)]
