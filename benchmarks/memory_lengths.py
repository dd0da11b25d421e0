"""Peak of activations against the length of rows, for ranks that share them, beside what a plan counts.

Bytes of all tensors that a forward and a backward pass have alive at a time are counted, operation by
operation, on tensors without data: so any length costs a second, and no other process is needed. What single
operations need within themselves is not seen (a chunk of logits, which no length changes).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import machine
from llmkit.batch import Batch
from llmkit.config.shape import ModelShape
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from llmkit.parallel.context import WHOLE_ROWS, ContextParallel
from llmkit.parallel.layout import Layout
from llmkit.plan.activations import training_parts
from llmkit.plan.arithmetic import Arithmetic
from llmkit.precision import PRECISIONS

MIB = 2**20
HOW = (("none", 0), ("full", 0), ("full", 1024))
"""What is computed again, and the tile of the MLP."""
FORMS = {"attention": "sdpa", "head_loss": "chunked", "linear": "torch", "norm": "torch"}
SHAPE = ModelShape(
    vocab_size=128, padded_vocab_size=128, hidden_size=64, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, head_dim=8, intermediate_size=192, max_position_embeddings=2**20, mlp="swiglu",
    norm="rmsnorm", norm_eps=1e-5, position_embedding="rope", rope_theta=1e6, attention_bias=False,
    mlp_bias=False, qk_norm=False, sliding_window=None, tie_word_embeddings=True, attention_dropout=0.0,
    hidden_dropout=0.0, initializer_range=0.02, residual_init="scaled", vocab_pad_multiple=128,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """ranks: that share rows, by Ulysses. recompute: "none" or "full". tile: `kernels.mlp_tile`."""

    ranks: int
    recompute: str = "none"
    tile: int = 0

    def __str__(self) -> str:
        tiles = f", tiles of {self.tile}" if self.tile else ""
        return f"{self.ranks} | {self.recompute}{tiles}"


class Counted(TorchDispatchMode):
    """most: bytes of the tensors that operations have made since it was entered, at their largest; what they
    were given (weights, tables) is none of them, nor are views of it."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.given: dict[int, torch.UntypedStorage] = {}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in tree_leaves((arguments, options)):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                self.given[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        out = function(*arguments, **(options or {}))
        self.alive = {key: each for key, each in self.alive.items() if not each[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.given:
                    self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@contextmanager
def rank_of(size: int) -> Iterator[ContextParallel]:
    """The first of so many ranks, whose messages go nowhere."""
    if size == 1:
        yield WHOLE_ROWS
        return
    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield ContextParallel(0, size, dist.group.WORLD, "ulysses")
    finally:
        dist.destroy_process_group()


def peak(case: Case, length: int, shape: ModelShape = SHAPE, real: bool = False) -> int:
    """Bytes that a step with one row takes beside weights and their gradients. real: it is computed, too."""
    with rank_of(case.ranks) as context, nullcontext() if real else FakeTensorMode():
        model = GPT(
            shape, Operators.of(FORMS), activation_checkpointing=case.recompute, mlp_tile=case.tile,
            context=context, seed=0 if real else None,
        )  # fmt: skip
        model.has_weights = True
        tokens = torch.zeros(1, length, dtype=torch.int64)
        batch = Batch(tokens, tokens).cut(context.own(length))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with Counted() as counted:
            model(batch).nats.sum().backward()
        return counted.most


def planned(case: Case, length: int, shape: ModelShape = SHAPE) -> float:
    """The same by `llmkit plan`, without the gradient of the head's weight."""
    layout = Layout(
        world_size=case.ranks, context_parallel_size=case.ranks, activation_checkpointing=case.recompute
    )  # fmt: skip
    how = Arithmetic(
        PRECISIONS["fp32"], layout, False, False, FORMS, length=length, mlp_tile=case.tile
    )  # fmt: skip
    parts, tokens = training_parts(shape, how), -(-length // case.ranks)
    return sum(each.of(tokens) for kind, each in parts.items() if kind != "whatever the batch")


def slope(lengths: Sequence[int], sizes: Sequence[float]) -> float:
    """Bytes a token by least squares."""
    mean, level = sum(lengths) / len(lengths), sum(sizes) / len(sizes)
    above = sum((x - mean) * (y - level) for x, y in zip(lengths, sizes, strict=True))
    return above / sum((x - mean) ** 2 for x in lengths)


def run(lengths: Sequence[int], out: Path) -> int:
    """Counts all cases, and writes the table; returns the exit code."""
    cases = [Case(ranks, *how) for how in HOW for ranks in (1, 2, 4)]
    rows = []
    for case in cases:
        found = [peak(case, length) for length in lengths]
        wanted = [planned(case, length) for length in lengths]
        cells = [str(case), *(f"{size / MIB:,.1f}" for size in found)]
        per_token = slope(lengths, found), slope(lengths, wanted)
        cells += [*(f"{each:,.0f}" for each in per_token), f"{per_token[0] / per_token[1] - 1.0:+.1%}"]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    today, name = datetime.date.today().isoformat(), machine.device_name(torch.device("cpu"))
    short = [f"{length // 1024}k" if length >= 1024 else str(length) for length in lengths]
    head = ["ranks", "recomputed", *short, "bytes a token", "by plan", "difference"]
    text = "\n".join([
        f"# Activations against the length of rows, {today}", "",
        f"- model: {SHAPE.num_hidden_layers} layers of width {SHAPE.hidden_size}, fp32, not compiled;",
        f"  MLP of width {SHAPE.intermediate_size}, {SHAPE.num_attention_heads} heads,",
        f"  {SHAPE.num_key_value_heads} of keys and values, vocabulary {SHAPE.vocab_size};",
        "  one row, shared by ranks with Ulysses",
        f"- versions: {machine.versions()}", f"- commit: {machine.commit()}", "",
        "MiB of the tensors of a step that are alive at a time, on one rank, without weights and their",
        "gradients; counted on tensors without data (benchmarks/memory_lengths.py). Bytes a token of the",
        "whole row: the slope of these figures, and of what `llmkit plan` counts. The vocabulary is small",
        "and the layers are eight so that the blocks decide the peak, not the head.", "",
        f"| {' | '.join(head)} |", f"|{' ---: |' * len(head)}", *rows, "",
    ])  # fmt: skip
    path = machine.new_file(out, f"{today}-memory-lengths-{machine.slug(name)}")
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0
