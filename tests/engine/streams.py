"""What DeepSpeed does on a GPU, seen on a CPU: streams are stand-ins, and everything runs in its order.

Of a gradient that the reduction stream reads where it lies, the stream must be recorded on its memory, or the
allocator may give that memory away while it is still read. And no timer may wait for the device.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.engine import deepspeed_config
from llmkit.engine.deepspeed import import_deepspeed
from llmkit.parallel.mesh import make_mesh
from llmkit.plan.buckets import BucketSizes
from tests.engine.rank_cases import make, train


class Stream:
    """Stands for one of a GPU."""

    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Event:
    """Stands for one of a GPU."""

    def record(self, *stream: object) -> None:
        pass

    def query(self) -> bool:
        return True


def pretend_gpu(record: set[int], waits: list[str]) -> None:
    """Makes DeepSpeed take this CPU for a GPU. record: addresses that a side stream was recorded on; waits:
    the files from which the device was waited for."""
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    accelerator, main = get_accelerator(), Stream()
    now = [main]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        now.append(stream)
        yield
        now.pop()

    def synchronize(*device: object) -> None:
        waits.extend(Path(frame.filename).name for frame in traceback.extract_stack()[-3:-1])

    kind = type(accelerator)
    kind.Stream, kind.Event = Stream, Event
    accelerator.current_stream = lambda *device: now[-1]
    accelerator.stream = on
    accelerator.synchronize = synchronize
    accelerator.is_synchronized_device = lambda: False
    accelerator.resolves_data_dependency = lambda: False
    Tensor.record_stream = lambda tensor, stream: record.add(tensor.untyped_storage().data_ptr())
    zero = deepspeed_config._zero
    deepspeed_config._zero = lambda layout, size, largest, on_gpu, buckets: zero(
        layout,
        size,
        largest,
        True,
        BucketSizes(deepspeed=3000),  # so that matrices are larger than a bucket
    )


def steps(stages: list[int]) -> dict[str, Any]:
    """Stage -> what was seen in four steps of two micro-batches in bf16."""
    recorded: set[int] = set()
    waits: list[str] = []
    pretend_gpu(recorded, waits)
    found = {}
    for stage in stages:
        mesh = make_mesh(1)
        engine, shape = make("llama", f"deepspeed {stage}", mesh, "bf16", 2)
        zero, reduced, unsafe = engine.zero, [], []
        if stage == 2:
            average = zero.average_tensor

            def watched(tensor: Tensor, dtype: torch.dtype) -> None:
                average(tensor, dtype)  # noqa: B023
                reduced.append(tensor.numel())  # noqa: B023
                in_place = dtype in zero.extra_large_param_to_reduce  # noqa: B023
                if in_place and tensor.untyped_storage().data_ptr() not in recorded:
                    unsafe.append(tensor.numel())  # noqa: B023

            zero.average_tensor = watched
        waits.clear()
        train(engine, shape, mesh, 2, range(4))
        found[str(stage)] = {
            "overlap": engine.config["zero_optimization"]["overlap_comm"],
            "largest": max(parameter.numel() for parameter in engine.parameters.values()),
            "reduced": reduced, "unsafe": unsafe, "waits": list(waits),
        }  # fmt: skip
        engine.close()
    return found
