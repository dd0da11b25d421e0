"""The moving average of the weights, against one computed anew in fp64 from the masters of each step."""

from __future__ import annotations

import pytest
import torch

from llmkit.checkpoint.pieces import EMA
from llmkit.checkpoint.read import load
from llmkit.checkpoint.write import save
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine import ema as module
from llmkit.engine.ema import MovingAverage
from llmkit.engine.native import NativeEngine
from llmkit.model.gpt import GPT
from llmkit.optim.schedule import StepValues
from llmkit.precision import PRECISIONS
from tests.engine.rank_cases import Weights
from tests.engine.test_native import batch_of, split, targets
from tests.shapes import GPT2_STYLE, random_model

STEPS, POISONED = 20, 11


def test_an_update_moves_each_average_by_a_share_of_its_distance_in_one_rounding():
    masters = [torch.randn(7, 5), torch.randn(3), torch.randn(1031)]
    average = MovingAverage(masters)
    before = [each.double() for each in average.of.values()]
    assert all(torch.equal(mine, master) for master, mine in average.of.items())
    with torch.no_grad():
        for master in masters:
            master.add_(torch.randn_like(master))
    kept = [master.clone() for master in masters]
    average.update(0.3)
    for old, master, mine in zip(before, masters, average.of.values(), strict=True):
        expected = old + 0.3 * (master.double() - old)
        assert torch.allclose(mine.double(), expected, rtol=3e-7, atol=3e-7)
    assert all(map(torch.equal, masters, kept))
    now = [each.clone() for each in average.of.values()]
    average.update(0.3, torch.tensor(1.0))
    assert all(map(torch.equal, average.of.values(), now))
    average.update(0.3, torch.tensor(0.0))
    assert not any(map(torch.equal, average.of.values(), now))


@pytest.mark.cuda
def test_an_update_on_a_gpu_is_that_of_the_cpu_and_waits_for_nothing(request):
    masters = [torch.randn(7, 5), torch.randn(2**21 + 3), torch.randn(3)]
    mine = [master.cuda() for master in masters]
    on_cpu, on_gpu = MovingAverage(masters), MovingAverage(mine)
    for master, other in zip(masters, mine, strict=True):
        other.copy_(master.normal_())
    steps = [(0.3, torch.tensor(0.0)), (0.2, torch.tensor(1.0)), (0.1, torch.tensor(0.0))]
    on_device = [skipped.cuda() for _, skipped in steps]
    request.getfixturevalue("waiting_is_an_error")
    for (share, _), skipped in zip(steps, on_device, strict=True):
        on_gpu.update(share, skipped)
    torch.cuda.set_sync_debug_mode("default")
    for share, skipped in steps:
        on_cpu.update(share, skipped)
    for expected, found in zip(on_cpu.of.values(), on_gpu.of.values(), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(other.cpu(), master) for master, other in zip(masters, mine, strict=True))


def test_an_exchange_swaps_every_element(monkeypatch):
    monkeypatch.setattr(module, "PART", 4)
    master = torch.arange(21.0).view(3, 7)
    average = MovingAverage([master])
    average.of[master].add_(100.0)
    average.exchange()
    assert master.flatten().tolist() == [100.0 + i for i in range(21)]
    assert average.of[master].flatten().tolist() == list(range(21))


def make(precision: str, optimizer: str, ema: bool = True) -> NativeEngine:
    settings = Optimizer(name=optimizer, learning_rate=1e-2, eps=1e-5)
    engine = NativeEngine(
        GPT(GPT2_STYLE), settings, precision=PRECISIONS[precision], gradient_clipping=0.5, ema=ema
    )
    engine.write_pieces(Weights(random_model(GPT2_STYLE)), 0)
    return engine


def step(engine: NativeEngine, number: int) -> None:
    """One step; in that of `POISONED` the loss is not finite."""
    batch = batch_of(GPT2_STYLE, number)
    poison = engine.model.register_forward_hook(
        lambda module, inputs, loss: loss._replace(nats=loss.nats * float("nan"))
    ) if number == POISONED else None  # fmt: skip
    result = engine.train_step(split(batch, 2), targets(batch), StepValues(ema=share(number)))
    assert result.skipped.item() == float(number == POISONED)
    if poison is not None:
        poison.remove()


def share(number: int) -> float:
    """Of decay 0.7, updated after every second step and in the poisoned one."""
    return 1 - min(0.7, (1 + number) / (10 + number)) if number % 2 or number == POISONED else 0.0


def state(engine: NativeEngine) -> dict[tuple[str, str], torch.Tensor]:
    return {(p.kind, p.name): p.data.clone() for p in engine.read_pieces()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_twenty_steps_equal_the_average_in_fp64(precision, optimizer):
    engine, without = make(precision, optimizer), make(precision, optimizer, ema=False)
    averages = {name: data.double() for (kind, name), data in state(engine).items() if kind == EMA}
    for number in range(STEPS):
        step(engine, number)
        step(without, number)
        now = state(engine)
        for name in averages if number != POISONED else ():
            averages[name] += share(number) * (now["master", name].double() - averages[name])
    assert averages.keys() == {name for kind, name in now if kind == "master"}
    for name, average in averages.items():
        assert (now[EMA, name] - average).norm() <= 3e-7 * average.norm(), name
        assert not torch.equal(now[EMA, name], now["master", name])
    alone = state(without)  # the training itself is the same bit for bit
    assert all(torch.equal(now[key], data) for key, data in alone.items())
    assert now.keys() - alone.keys() == {(EMA, name) for name in averages}


def test_a_resumed_run_has_the_same_average_bit_for_bit(tmp_path):
    engine = make("bf16", "muon")
    for number in range(STEPS):
        step(engine, number)
        if number == 8:
            folder = save(
                tmp_path, 9, engine.read_pieces(), state={}, model={}, config={}, extra_files={}, keep_last=1
            )
    resumed = make("bf16", "muon")
    resumed.write_pieces(load(folder), 9)
    for number in range(9, STEPS):
        step(resumed, number)
    expected, found = state(engine), state(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], data) for key, data in expected.items())


def test_where_a_checkpoint_has_no_average_it_begins_at_the_weights(tmp_path):
    before = make("fp32", "adamw", ema=False)
    step(before, 1)
    folder = save(
        tmp_path, 1, before.read_pieces(), state={}, model={}, config={}, extra_files={}, keep_last=1
    )
    engine = make("fp32", "adamw")
    engine.write_pieces(load(folder), 1)
    found = state(engine)
    masters = {name: data for (kind, name), data in found.items() if kind == "master"}
    assert masters and all(torch.equal(found[EMA, name], data) for name, data in masters.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_exchange_gives_the_model_the_average_and_a_second_one_takes_it_back(precision):
    engine = make(precision, "adamw")
    for number in range(5):
        step(engine, number)
    before, weights = state(engine), [each.detach().clone() for each in engine.model.parameters()]
    unseen = batch_of(GPT2_STYLE, 99)
    loss = engine.evaluate([unseen]).nats.sum()
    engine.exchange_ema()
    averaged = engine.evaluate([unseen]).nats.sum()
    other = GPT(GPT2_STYLE)
    for name, parts in other.parameter_slices().items():
        for part in parts:
            mean = before[EMA, part.name].view(part.stop - part.start, *other.get_parameter(name).shape[1:])
            other.get_parameter(name).data[part.start : part.stop] = mean
    if precision == "bf16":
        other = other.to(torch.bfloat16)
    assert averaged.item() == pytest.approx(other(unseen).nats.sum().item(), rel=1e-6)
    assert abs(averaged - loss) > 1e-3
    engine.exchange_ema()
    assert all(map(torch.equal, engine.model.parameters(), weights))
    assert engine.evaluate([unseen]).nats.sum() == loss
    assert all(torch.equal(data, before[key]) for key, data in state(engine).items())


def test_replicas_compare_their_averages_too():
    found = {copy.name: copy.tensor for copy in make("fp32", "adamw").copies()}
    assert {f"{name} (ema)" for name in dict(GPT(GPT2_STYLE).named_parameters())} <= found.keys()
