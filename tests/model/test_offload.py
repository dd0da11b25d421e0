"""Inputs of recomputed blocks on the host."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from llmkit.batch import Batch
from llmkit.kernels.operators import Operators
from llmkit.model import gpt, offload
from llmkit.model.gpt import GPT
from llmkit.model.offload import HostCopies, _Copy
from tests.shapes import LLAMA_STYLE, random_model

SHAPE = replace(LLAMA_STYLE, num_hidden_layers=4, hidden_dropout=0.1, residual_scalars=True)
COMPILER = "aot_eager_decomp_partition"


def trained(offload: bool, every: int = 1, compiled: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients."""
    model = GPT(
        SHAPE, Operators.of(), activation_checkpointing="full", activation_checkpointing_every=every,
        offload_activations=offload,
    )  # fmt: skip
    model.load_state_dict(random_model(SHAPE).state_dict())
    if compiled:
        torch._dynamo.reset()
        counters.clear()
        model.compile_parts(print, COMPILER)
    tokens = torch.randint(90, (2, 24), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    loss = model(Batch(tokens[:, :-1], tokens[:, 1:])).nats
    loss.sum().backward()
    return loss.detach(), [each.grad for each in model.parameters()]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Copies are made on a CPU, too; what was taken back."""
    taken: list[Tensor] = []
    take = _Copy.take

    def watched(self: _Copy) -> Tensor:
        taken.append(take(self))
        return taken[-1]

    monkeypatch.setattr(gpt, "HostCopies", partial(HostCopies, always=True))
    monkeypatch.setattr(_Copy, "take", watched)
    return taken


@pytest.mark.parametrize(("every", "compiled"), [(1, False), (2, False), (1, True)])
def test_what_comes_back_gives_the_same_bits(copies, every, compiled):
    wanted = trained(False, every, compiled)
    assert not copies
    found = trained(True, every, compiled)
    assert len(copies) == 4 // every + compiled  # each input once; compiled code keeps the first as x0, too
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], wanted[1], strict=True))
    if compiled:
        assert not counters["graph_break"]


def test_no_input_of_a_block_stays_where_it_was():
    """Bytes that autograd keeps of a chain of three functions, one tensor each."""
    host, x, kept = HostCopies(torch.device("cpu"), always=True), torch.randn(64, 64, requires_grad=True), []
    inputs = [x * 1.0]
    for _ in range(3):
        with host.kept(inputs[-1]):
            out = inputs[-1].sin()
        kept.append(out.grad_fn)
        inputs.append(out)
    places = {each.data_ptr() for each in inputs}
    saved = [each._saved_self for each in kept]
    assert not places & {each.data_ptr() for each in saved}
    assert all(torch.equal(one, other) for one, other in zip(saved, inputs, strict=False))
    assert host.last is not None and host.last.before is not None and host.last.before.before is not None
    assert host.last.before.before.before is None


def test_on_a_cpu_nothing_is_copied():
    host, x = HostCopies(torch.device("cpu")), torch.randn(8, requires_grad=True) * 1.0
    with host.kept(x):
        out = x.sin()
    assert out.grad_fn._saved_self.data_ptr() == x.data_ptr() and host.last is None


class Stream:
    """Writes down what a stream of a GPU is asked for; an event is the number of copies before it."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked, self.events = name, asked, 0

    def wait_stream(self, other: Stream) -> None:
        self.asked.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: int) -> None:
        self.asked.append(f"{self.name} waits for copy {event}")

    def record_event(self) -> int:
        self.events += 1
        self.asked.append(f"copy {self.events}")
        return self.events


def test_memory_is_given_back_behind_its_copy_and_brought_back_one_ahead(monkeypatch):
    asked: list[str] = []
    computing, copying, empty = Stream("computing", asked), Stream("copying", asked), torch.empty
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kinds: empty(*shape, **kinds))
    inputs, copies = [torch.randn(5) for _ in range(3)], list[_Copy]()
    for x in inputs:
        copies.append(_Copy(x, copies[-1] if copies else None, copying))
    begun = ["copying waits for computing", "copy {}"]
    given_back = ["computing waits for copy {}"]
    one, two, three = ([line.format(number) for line in begun] for number in (1, 2, 3))
    first, second = ([line.format(number) for line in given_back] for number in (1, 2))
    assert asked == [*one, *first, *two, *second, *three]
    assert [each.source is not None for each in copies] == [False, False, True]
    asked.clear()
    assert torch.equal(copies[2].take(), inputs[2])  # itself: nothing is brought for it
    assert asked == ["computing waits for copy 3", "copying waits for computing", "copy 4"]
    assert [each.back is not None for each in copies] == [False, True, False]
    assert torch.equal(copies[1].take(), inputs[1]) and torch.equal(copies[0].take(), inputs[0])
    assert asked[3:] == [
        "computing waits for copy 4", "copying waits for computing", "copy 5", "computing waits for copy 5"
    ]  # fmt: skip
    assert all(each.source is None and each.back is None for each in copies)
    assert torch.equal(copies[2].take(), inputs[2]) and copies[1].back is not None  # another backward pass
    unused: list[object] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: unused.append(stream))
    del copies
    assert unused == [copying]


def test_a_device_has_one_stream_for_copies(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    offload._copy_stream.cache_clear()
    streams = [HostCopies(torch.device("cuda", index)).stream for index in (0, 0, 1)]
    offload._copy_stream.cache_clear()
    assert streams[0] is streams[1] is not streams[2]
