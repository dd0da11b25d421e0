"""Who saves and loads in the benchmark of checkpoints: as much state, each as it is meant to be used.

The state is that of AdamW in fp32: a master and two moments of each matrix.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.checkpoint import read
from llmkit.checkpoint.keeping import Keep
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.stage import HostMemory, Snapshot, room_for, stage
from llmkit.checkpoint.write import write_and_commit
from llmkit.engine.deepspeed import import_deepspeed

KINDS = ("master", "exp_avg", "exp_avg_sq")
SIDE = 1024
"""Of the matrices: 4 MiB each."""
Finish = Callable[[], object]


class Contender(Protocol):
    """Saves and loads its state."""

    def tensors(self) -> Iterator[Tensor]:
        """The state."""
        ...

    def begin(self, folder: Path) -> Finish:
        """Saves into an empty folder; returns when training could go on. The result waits for the end."""
        ...

    def load(self, folder: Path) -> None:
        """Loads the state, in its place."""
        ...


@dataclass
class State:
    """Matrices of some GB in all."""

    gigabytes: float

    def __post_init__(self) -> None:
        self.matrices = max(1, round(self.gigabytes * 1e9 / (len(KINDS) * 4 * SIDE * SIDE)))
        draw = torch.Generator().manual_seed(0)
        names = [f"blocks.{number}.weight" for number in range(self.matrices)]
        self.state = {
            kind: {name: torch.randn(SIDE, SIDE, generator=draw) for name in names} for kind in KINDS
        }

    def tensors(self) -> Iterator[Tensor]:
        for kind in KINDS:
            yield from self.state[kind].values()


class Llmkit:
    """llmkit, with `checkpoint.background` or without: files synced, checksums written."""

    def __init__(self, state: State, background: bool) -> None:
        self.state, self.tensors = state, state.tensors
        self.memory = HostMemory() if background else None
        if self.memory is not None:  # as it is taken while training begins
            self.memory.allocate(map(room_for, self.pieces()), pinned=False)

    def pieces(self) -> Iterator[Piece]:
        """The state, each tensor a piece."""
        size = SIDE * SIDE
        for kind, tensors in self.state.state.items():
            for name, tensor in tensors.items():
                box = ((0, SIDE), (0, SIDE))
                yield Piece(name, kind, (SIDE, SIDE), box, (0, size), tensor.view(-1))

    def begin(self, folder: Path) -> Finish:
        snapshot = stage(Snapshot(1, self.pieces(), {}, {}, {}, {}), self.memory)

        def work() -> None:
            write_and_commit(folder, snapshot, keep=Keep(1), mesh=read.ALONE, note=print, claim=None)

        if self.memory is None:
            work()
            return lambda: None
        thread = threading.Thread(target=work)
        thread.start()
        return thread.join

    def load(self, folder: Path) -> None:
        """As a run resumes: the newest checkpoint is verified as a whole, then read."""
        checkpoint = read.newest(folder, print)
        assert checkpoint is not None
        for kind, tensors in self.state.state.items():
            for name, tensor in tensors.items():
                checkpoint.read_into(tensor.view(-1), name, kind, ((0, SIDE), (0, SIDE)), (0, SIDE * SIDE))


class TorchSave:
    """torch.save of a dict; neither synced nor verified."""

    def __init__(self, state: State) -> None:
        self.state, self.tensors = state, state.tensors

    def begin(self, folder: Path) -> Finish:
        torch.save(self.state.state, folder / "state.pt")
        return lambda: None

    def load(self, folder: Path) -> None:
        found = torch.load(folder / "state.pt", weights_only=True)
        for kind, tensors in self.state.state.items():
            for name, tensor in tensors.items():
                tensor.copy_(found[kind][name])


class Dcp:
    """torch.distributed.checkpoint; its files are synced by default. Its memory for copies is kept."""

    def __init__(self, state: State, background: bool) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.state, self.tensors = state, state.tensors
        plain = StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False,
            use_non_blocking_copy=False,
        )  # fmt: skip
        self.stager = DefaultStager(plain) if background else None

    def begin(self, folder: Path) -> Finish:
        import torch.distributed.checkpoint as dcp

        if self.stager is None:
            dcp.save(self.state.state, checkpoint_id=folder, no_dist=True)
            return lambda: None
        future: Any = dcp.async_save(
            self.state.state, checkpoint_id=folder, async_stager=self.stager, no_dist=True
        )  # fmt: skip
        return future.result

    def load(self, folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.load(self.state.state, checkpoint_id=folder, no_dist=True)


class DeepSpeed:
    """DeepSpeed's save_checkpoint at ZeRO stage 1, with a model of its own: it keeps the state itself.

    It stores the weights of the model beside masters and moments; neither synced nor verified.
    """

    def __init__(self, state: State) -> None:
        deepspeed = import_deepspeed()  # sets it up, which must come before any process group
        os.environ["LOCAL_RANK"] = "0"  # it insists, as on a process group
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        layers = [torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(state.matrices)]
        model = torch.nn.ModuleList(layers)
        config = {
            "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": True}, "steps_per_print": 10**9,
        }  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with redirect_stdout(io.StringIO()):
            self.engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=config, dist_init_required=False
            )
        self.engine.backward(sum(layer.weight.float().square().sum() for layer in layers))
        self.engine.step()

    def tensors(self) -> Iterator[Tensor]:
        zero = self.engine.optimizer
        yield from (group.detach() for group in zero.single_partition_of_fp32_groups)
        for group in zero.single_partition_of_fp32_groups:
            yield from (zero.optimizer.state[group][kind] for kind in KINDS[1:])

    def begin(self, folder: Path) -> Finish:
        with redirect_stdout(io.StringIO()):
            self.engine.save_checkpoint(str(folder), tag="step")
        return lambda: None

    def load(self, folder: Path) -> None:
        with redirect_stdout(io.StringIO()):
            self.engine.load_checkpoint(str(folder), tag="step")


CONTENDERS: dict[str, Callable[[State], Contender]] = {
    "llmkit": lambda state: Llmkit(state, background=False),
    "llmkit, background": lambda state: Llmkit(state, background=True),
    "torch.save": TorchSave,
    "DCP": lambda state: Dcp(state, background=False),
    "DCP, async_save": lambda state: Dcp(state, background=True),
    "DeepSpeed": DeepSpeed,
}
