"""The native engine against a loop that anyone can read: full batch, mean loss, plain AdamW."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from llmkit.batch import IGNORE, Batch
from llmkit.checkpoint.read import load
from llmkit.checkpoint.write import save
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine import native as module
from llmkit.engine.native import NativeEngine
from llmkit.engine.parts import StepParts
from llmkit.model.gpt import GPT
from llmkit.optim.schedule import StepValues
from llmkit.precision import PRECISIONS
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

OPTIMIZER = Optimizer(learning_rate=1e-2, eps=1e-5, weight_decay=0.1)
CLIPPING = 0.5


def batch_of(shape, seed: int, rows: int = 6) -> Batch:
    """Rows with different numbers of targets, so that a mean of means would show."""
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(shape.vocab_size, (2, rows, 19), generator=generator).unbind()
    labels = labels.clone()
    for row in range(rows):
        labels[row, : 3 * row] = IGNORE
    return Batch(tokens, labels)


def split(batch: Batch, parts: int) -> list[Batch]:
    return [Batch(t, y) for t, y in zip(batch.tokens.chunk(parts), batch.labels.chunk(parts), strict=True)]


def targets(batch: Batch) -> int:
    return int((batch.labels != IGNORE).sum())


def make(shape, precision: str = "fp32", clipping: float = CLIPPING, optimizer=OPTIMIZER) -> NativeEngine:
    return NativeEngine(
        random_model(shape), optimizer, precision=PRECISIONS[precision], gradient_clipping=clipping
    )


def reference_steps(shape, steps: int) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses, gradient norms and final weights; none of the engine's code."""
    model = random_model(shape)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, lr=1e-2, betas=OPTIMIZER.betas, eps=1e-5, fused=False, foreach=False
    )
    losses, norms = [], []
    for step in range(steps):
        batch = batch_of(shape, step)
        logits = model.hidden(batch.tokens) @ model.head.weight[: shape.vocab_size].T
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE
        )
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]).norm().item())
        for p in model.parameters():
            p.grad *= min(1.0, CLIPPING / norms[-1])
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
def test_ten_clipped_steps_equal_the_plain_loop(shape, parts):
    losses, norms, weights = reference_steps(shape, 10)
    engine = make(shape)
    for step in range(10):
        batch = batch_of(shape, step)
        result = engine.train_step(split(batch, parts), targets(batch), StepValues(1 / (1 + step)))
        assert result.loss_sum.item() / result.targets == pytest.approx(losses[step], rel=1e-6)
        assert result.grad_norm.item() == pytest.approx(norms[step], rel=3e-6)
        assert result.skipped.item() == 0.0
        assert norms[step] > CLIPPING  # so that clipping is part of what is compared
    for name, weight in engine.model.named_parameters():
        if not name.endswith("qkv.bias"):  # the key bias has no true gradient: AdamW makes noise of it
            assert (weight - weights[name]).norm() <= 1e-5 * weights[name].norm(), name
    assert engine.optimizer_steps == 10


ENTRIES = [
    {"params": ["embedding.weight"], "learning_rate": 3e-2, "betas": [0.8, 0.9], "weight_decay": 0.0},
    {"params": ["*norm.weight", "*norm.bias"], "learning_rate": 5e-3, "eps": 1e-4, "weight_decay": 0.3},
    {"params": ["blocks.1.attention.[qkv]_proj.*"], "learning_rate": 2e-2, "weight_decay": 0.2},
]


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
def test_steps_of_groups_equal_the_plain_loops(shape):
    """PyTorch's AdamW with groups by hand, whose rates and decay follow the step."""
    model, engine = random_model(shape), make(shape, optimizer=OPTIMIZER.model_validate(
        {**OPTIMIZER.model_dump(), "groups": ENTRIES}
    ))  # fmt: skip
    groups = []
    for name, parameter in model.named_parameters():
        values = {"lr": 1e-2, "weight_decay": 0.1 * (parameter.dim() > 1), "betas": (0.9, 0.95), "eps": 1e-5}
        if name == "embedding.weight":
            values |= {"lr": 3e-2, "betas": (0.8, 0.9), "weight_decay": 0.0}
        elif "norm." in name:
            values |= {"lr": 5e-3, "eps": 1e-4, "weight_decay": 0.3}
        elif name.startswith("blocks.1.attention.qkv."):
            values |= {"lr": 2e-2, "weight_decay": 0.2}
        groups.append({"params": [parameter], **values})
    peaks = [(group["lr"], group["weight_decay"]) for group in groups]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    for step in range(5):
        batch = batch_of(shape, step)
        values = StepValues(1 / (1 + step), weight_decay=1 - step / 5)
        result = engine.train_step(split(batch, 3), targets(batch), values)
        optimizer.zero_grad()
        (model(batch).nats.sum() / targets(batch)).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        for group, (rate, decay) in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = rate * values.learning_rate
            group["weight_decay"] = decay * values.weight_decay
        optimizer.step()
    for (name, weight), wanted in zip(engine.model.named_parameters(), model.parameters(), strict=True):
        if not name.endswith("qkv.bias"):  # the key bias has no true gradient: AdamW makes noise of it
            assert (weight - wanted).norm() <= 1e-5 * wanted.norm(), name


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
def test_bf16_trains_masters_that_the_weights_round(shape):
    losses, _, _ = reference_steps(shape, 10)
    engine = make(shape, "bf16")
    for step in range(10):
        batch = batch_of(shape, step)
        result = engine.train_step(split(batch, 2), targets(batch), StepValues(1 / (1 + step)))
        assert result.loss_sum.item() / result.targets == pytest.approx(losses[step], rel=2e-2)
    masters = {held.fragments[0].parameter: held.tensor for held in engine.masters.held}
    for name, weight in engine.model.named_parameters():
        master = masters[name]
        assert weight.dtype == torch.bfloat16 and master.dtype == torch.float32, name
        assert torch.equal(weight, master.bfloat16()), name
        state = engine.optimizers[0].state[master]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32, name
    assert any(not torch.equal(m, m.bfloat16().float()) for m in masters.values())


def test_bf16_gradients_are_accumulated_in_fp32():
    """From 256 equal parts on, a sum in bf16 would not grow any more."""
    engine = make(replace(LLAMA_STYLE, num_hidden_layers=1), "bf16", clipping=0.0)
    batch = batch_of(LLAMA_STYLE, 0, rows=1)
    engine.train_step([batch] * 300, targets(batch) * 300, StepValues(0.0))
    accumulated = [held.tensor.grad.clone() for held in engine.masters.held]
    engine.train_step([batch], targets(batch), StepValues(0.0))
    once = [held.tensor.grad for held in engine.masters.held]
    for a, b in zip(accumulated, once, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=float(b.abs().max()) * 1e-2)


def test_a_bf16_gradient_is_freed_within_the_backward_pass():
    """Each weight's as soon as its master has it: gradients of all weights never lie in memory twice."""
    engine, kept = make(LLAMA_STYLE, "bf16"), []
    weights = engine.masters.weights
    for weight in weights:
        weight.register_post_accumulate_grad_hook(
            lambda _: kept.append(sum(each.grad is not None for each in weights))
        )
    batch = batch_of(LLAMA_STYLE, 0)
    engine.train_step([batch, batch], 2 * targets(batch), StepValues(0.0))
    assert kept == [0] * 2 * len(weights)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(precision, poison, optimizer):
    engine = make(LLAMA_STYLE, precision, optimizer=OPTIMIZER.model_copy(update={"name": optimizer}))
    batch = batch_of(LLAMA_STYLE, 0)
    engine.train_step([batch], targets(batch))
    before = [piece.data.clone() for piece in engine.read_pieces()]
    weights = [weight.detach().clone() for weight in engine.weights.values()]

    handle = list(engine.weights.values())[3].register_hook(lambda gradient: gradient.fill_(poison))
    result = engine.train_step(split(batch, 2), targets(batch))
    handle.remove()
    assert result.skipped.item() == 1.0 and engine.optimizer_steps == 1
    for old, piece in zip(before, engine.read_pieces(), strict=True):
        assert torch.equal(old, piece.data), piece.name
    assert all(torch.equal(a, b) for a, b in zip(weights, engine.weights.values(), strict=True))

    assert engine.train_step([batch], targets(batch)).skipped.item() == 0.0
    assert engine.optimizer_steps == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_without_a_target_changes_nothing(precision, optimizer):
    """Weight decay, moments and their count would otherwise go on."""
    engine = make(LLAMA_STYLE, precision, optimizer=OPTIMIZER.model_copy(update={"name": optimizer}))
    batch = batch_of(LLAMA_STYLE, 0)
    engine.train_step([batch], targets(batch))
    before = [piece.data.clone() for piece in engine.read_pieces()]
    empty = batch._replace(labels=torch.full_like(batch.labels, IGNORE))
    result = engine.train_step([empty, empty], 0)
    assert (result.targets, result.loss_sum.item(), result.skipped.item()) == (0, 0.0, 0.0)
    assert engine.optimizer_steps == 1
    for old, piece in zip(before, engine.read_pieces(), strict=True):
        assert torch.equal(old, piece.data), piece.name
    engine.train_step([batch], targets(batch))
    assert engine.optimizer_steps == 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
def test_an_engine_goes_on_bit_for_bit_from_its_pieces(tmp_path, shape, precision, optimizer):
    settings = OPTIMIZER.model_copy(update={"name": optimizer})
    first = make(shape, precision, optimizer=settings)
    for step in range(3):
        first.train_step([batch_of(shape, step)], 50)
    folder = save(
        tmp_path,
        3,
        first.read_pieces(),
        state={},
        model=shape.to_dict(),
        config={},
        extra_files={},
        keep_last=1,
    )
    second = NativeEngine(GPT(shape), settings, precision=PRECISIONS[precision], gradient_clipping=CLIPPING)
    second.write_pieces(load(folder), first.optimizer_steps)
    for step in range(3, 6):
        a = first.train_step([batch_of(shape, step)], 50)
        b = second.train_step([batch_of(shape, step)], 50)
        assert a.loss_sum.item() == b.loss_sum.item() and a.grad_norm.item() == b.grad_norm.item()
    for a, b in zip(first.read_pieces(), second.read_pieces(), strict=True):
        assert (a.name, a.kind) == (b.name, b.kind) and torch.equal(a.data, b.data), a.name
    assert first.optimizer_steps == second.optimizer_steps == 6


def test_pieces_before_the_first_step_are_the_initial_weights(tmp_path):
    engine = make(LLAMA_STYLE, "bf16")
    kinds = {piece.kind for piece in engine.read_pieces()}
    assert kinds == {"master"} and engine.optimizer_steps == 0


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest():
    engine = make(GPT2_STYLE, optimizer=OPTIMIZER.model_copy(update={"name": "muon"}))
    batch = batch_of(GPT2_STYLE, 0)
    engine.train_step([batch], targets(batch))
    kinds: dict[str, set[str]] = {}
    for piece in engine.read_pieces():
        kinds.setdefault(piece.kind, set()).add(piece.name)
    assert kinds["exp_avg"] == kinds["exp_avg_sq"] == kinds["master"] - kinds["momentum_buffer"]
    assert "blocks.0.attention.k_proj.weight" in kinds["momentum_buffer"]
    assert all(n.startswith("blocks.") and n.endswith("proj.weight") for n in kinds["momentum_buffer"])
    assert {"embedding.weight", "positions.weight", "norm.bias", "blocks.1.mlp.up_proj.bias"} <= kinds[
        "exp_avg"
    ]


def test_evaluation_sums_every_row_and_changes_nothing():
    shape = replace(GPT2_STYLE, hidden_dropout=0.5, attention_dropout=0.5)
    engine = make(shape)
    batch = batch_of(shape, 0)
    rows = engine.evaluate(split(batch, 3))
    again = engine.evaluate([batch])
    torch.testing.assert_close(rows.nats, again.nats, rtol=1e-5, atol=1e-5)
    assert rows.targets.tolist() == [19, 16, 13, 10, 7, 4]
    assert not rows.nats.requires_grad and engine.model.training
    assert all(weight.grad is None for weight in engine.weights.values())


def test_evaluation_does_not_change_the_next_step():
    one, two = make(LLAMA_STYLE), make(LLAMA_STYLE)
    batch = batch_of(LLAMA_STYLE, 0)
    two.evaluate([batch])
    for engine in (one, two):
        engine.train_step([batch], targets(batch))
    assert all(torch.equal(a, b) for a, b in zip(one.weights.values(), two.weights.values(), strict=True))


def test_parts_of_a_step_are_what_they_are_called(monkeypatch):
    engine, now = make(LLAMA_STYLE), [0.0]

    def takes(owner, name: str, seconds: float) -> None:
        function = getattr(owner, name)

        def slow(*arguments, **options):
            now[0] += seconds
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, slow)

    monkeypatch.setattr(module, "StepParts", partial(StepParts, clock=lambda: now[0]))
    takes(engine, "_forward_and_backward", 1000.0)
    takes(engine.masters, "reduce", 1.0)
    takes(engine.masters, "send_weights", 2.0)
    takes(engine.sums, "over_ranks", 4.0)
    takes(engine, "_gradient_norm", 0.125)
    takes(engine, "_clip", 0.25)
    takes(engine.optimizers[0], "step", 0.5)
    batch = batch_of(LLAMA_STYLE, 0)
    result = engine.train_step([batch], targets(batch))
    assert result.parts is not None
    assert result.parts.read() == {"communication": 7.0, "optimizer": 0.875}
    assert engine.train_step([batch], 0).parts is None
