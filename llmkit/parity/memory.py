"""Whether an engine keeps as many bytes as the plan says, of each part of its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, UntypedStorage

from llmkit.engine.base import Engine
from llmkit.engine.gradient_slices import GradientSlices
from llmkit.engine.masters import PartitionedMasters, SeveralMasters
from llmkit.engine.native import NativeEngine
from llmkit.engine.reduce import Bucket
from llmkit.optim.build import moments
from llmkit.parallel.mesh import Mesh
from llmkit.plan.communication_memory import BUCKETS

Storages = dict[int, UntypedStorage]
"""Address -> memory; what is here is not freed, so that no two have one address."""
Gradients = Mapping[int, Sequence[Tensor]]
"""Those that each optimizer has read in its last step."""


@contextmanager
def watched_gradients(engine: Engine) -> Iterator[Gradients]:
    """Inside, the gradients of the engine are kept when optimizers read them."""
    found: dict[int, list[Tensor]] = {}

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        tensors = (tensor for group in optimizer.param_groups for tensor in group["params"])
        found[id(optimizer)] = [tensor.grad for tensor in tensors if tensor.grad is not None]

    hooks = [each.register_step_pre_hook(before_step) for each in _optimizers(engine)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watched_buckets(engine: Engine) -> Iterator[list[int]]:
    """Inside, the bytes of all buckets of gradients that are in memory are noted whenever another one comes,
    where a rank keeps slices of them alone."""
    masters = getattr(engine, "masters", None)
    parts = masters.parts if isinstance(masters, SeveralMasters) else [masters]
    buckets = (each.buckets for each in parts if isinstance(each, PartitionedMasters))
    slices = [each for each in buckets if isinstance(each, GradientSlices)]
    found: list[int] = []

    def watched(real: Callable[[Bucket], Tensor], bucket: Bucket) -> Tensor:
        buffer = real(bucket)
        found.append(sum(b.nbytes for each in slices for b in each.buffers.values()))
        return buffer

    with ExitStack() as stack:
        for each in slices:
            stack.enter_context(patch.object(each, "buffer", partial(watched, each.buffer)))
        yield found


def allocated(engine: Engine, gradients: Gradients) -> dict[str, int]:
    """Bytes that an engine keeps on this rank, by the parts of `State`. gradients: `watched_gradients`."""
    weights = _storages(_weights(engine))
    optimizers = _optimizers(engine)
    masters = _storages(t for each in optimizers for group in each.param_groups for t in group["params"])
    kept = _storages(
        state[kind]
        for each in optimizers
        for tensor, state in each.state.items()
        for kind in moments(each)
        if any(tensor is mine for group in each.param_groups for mine in group["params"])
    )
    average = engine.ema  # type: ignore[attr-defined]
    return {
        "weights": _size(weights),
        "gradients": _gradients(engine, gradients),
        "masters": _size({at: each for at, each in masters.items() if at not in weights}),
        "moments": _size(kept),
        "ema": 0 if average is None else _size(_storages(average.of.values())),
    }


def memory_differences(
    engine: Engine, planned: Mapping[str, int], gradients: Gradients, buckets: Sequence[int], mesh: Mesh
) -> list[str]:
    """What of the plan is not so on any rank, a text each. All ranks must call it.

    planned: the parts of `State`, and what `native_buffers` says. buckets: `watched_buckets`.
    """
    found = {**allocated(engine, gradients), BUCKETS: max(buckets, default=0)}
    mine = [
        f"rank {mesh.rank}: {found[name]:,} bytes of {name}, planned were {planned.get(name, 0):,}"
        for name in found
        if found[name] != planned.get(name, 0)
    ]
    return [each for text in mesh.all_gather_text(json.dumps(mine)) for each in json.loads(text)]


def _gradients(engine: Engine, watched: Gradients) -> int:
    """Bytes of gradients, with the rest of the buckets in which they lie.

    But where DeepSpeed cuts a rank's share out of what it has received: the rest is not kept.
    """
    read = [gradient for each in watched.values() for gradient in each]
    if isinstance(engine, NativeEngine) or hasattr(engine.zero, "bf16_groups"):  # type: ignore[attr-defined]
        return _size(_storages(read))
    return sum(gradient.nbytes for gradient in read)


def _optimizers(engine: Engine) -> list[torch.optim.Optimizer]:
    """Those that update tensors of a rank, whichever engine calls them."""
    if isinstance(engine, NativeEngine):
        return list(engine.optimizers)
    return list(engine.optimizer.optimizers.values())  # type: ignore[attr-defined]


def _weights(engine: Engine) -> Iterator[Tensor]:
    for parameter in engine.model.parameters():
        yield getattr(parameter, "ds_tensor", parameter.data)


def _storages(tensors: Iterable[Tensor]) -> Storages:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {each.data_ptr(): each for each in storages}


def _size(storages: Storages) -> int:
    return sum(each.nbytes() for each in storages.values())
