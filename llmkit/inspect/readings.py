"""What a GPT computes on its way through a text: losses, candidates by layer, attention, attributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmkit.inspect.plain_attention import plain_attention
from llmkit.kernels.operators import replace_functions
from llmkit.model.gpt import GPT


@dataclass(frozen=True)
class Lens:
    """What the last norm and the head make of the residual stream at each depth (nostalgebraist 2020).

    Depth 0 is what enters the first block, depth n what the n-th block gives. candidates: (depths, seq, top)
    ids of the likeliest next tokens, probabilities: theirs. target_probability: (depths, seq), of `targets`;
    target_rank: (depths, seq), how many tokens are likelier.
    """

    candidates: Tensor
    probabilities: Tensor
    target_probability: Tensor
    target_rank: Tensor


@dataclass(frozen=True)
class Readings:
    """All that is measured of one text; tensors are on the CPU.

    tokens: (seq,). targets: (seq,), the token that follows each; behind the last the likeliest one.
    losses: (seq,), nats of each target. attention: (layers, heads, seq, seq), the weights that each query
    (third dimension) gives to each key. attributions: (seq, seq), what each token (second dimension) adds to
    the log-probability of each target, by gradient x input.
    """

    tokens: Tensor
    targets: Tensor
    losses: Tensor
    lens: Lens
    attention: Tensor
    attributions: Tensor


def read_text(model: GPT, tokens: list[int], top: int = 5) -> Readings:
    """Measures a GPT that is not sharded, in evaluation mode, on the device where it is.

    tokens: at most as many as its context. top: candidates for each position and depth. The attributions take
    a backward pass a token. Attention is computed by its plain formula, and so are all numbers that follow.
    """
    ids = torch.tensor([tokens], device=model.embedding.weight.device)
    with ExitStack() as changes:
        attention = changes.enter_context(_recorded_attention(model))
        embedded = changes.enter_context(_differentiable_embedding(model))
        depths = changes.enter_context(_recorded_depths(model))
        changes.enter_context(torch.enable_grad())
        logits = model.head.logits(model.hidden(ids))[0]  # (seq, vocab)
    log_probabilities = logits.log_softmax(-1)
    targets = torch.cat((ids[0, 1:], logits[-1:].detach().argmax(-1)))
    chosen = log_probabilities.gather(-1, targets[:, None])[:, 0]
    with torch.no_grad():
        lens = _lens(model, depths, targets, min(top, model.vocab_size))
    return Readings(
        tokens=ids[0].cpu(),
        targets=targets.cpu(),
        losses=-chosen.detach().cpu(),
        lens=lens,
        attention=torch.stack(attention).cpu(),
        attributions=_attributions(chosen, embedded[0]).cpu(),
    )


def _attributions(chosen: Tensor, embedded: Tensor) -> Tensor:
    """chosen: (seq,), embedded: (1, seq, hidden) -> (seq, seq): d chosen[i] / d embedded[j] . embedded[j]."""
    rows = []
    for value in chosen:
        (gradient,) = torch.autograd.grad(value, embedded, retain_graph=True)
        rows.append((gradient * embedded.detach()).float().sum(-1)[0])
    return torch.stack(rows)


def _lens(model: GPT, depths: list[Tensor], targets: Tensor, top: int) -> Lens:
    found: list[tuple[Tensor, ...]] = []
    for stream in depths:
        probabilities = model.head.logits(model.norm(stream))[0].softmax(-1)  # (seq, vocab)
        target = probabilities.gather(-1, targets[:, None])
        likeliest = probabilities.topk(top)
        rank = (probabilities > target).sum(-1)
        found.append(tuple(x.cpu() for x in (likeliest.indices, likeliest.values, target[:, 0], rank)))
    return Lens(*(torch.stack(each) for each in zip(*found, strict=True)))


@contextmanager
def _recorded_attention(model: GPT) -> Iterator[list[Tensor]]:
    """Weights of attention by layer, (heads, seq, seq) each, once the model has computed within."""
    recorded: list[Tensor] = []

    def attention(*inputs: Tensor, **rules: Any) -> Tensor:
        weights, mixed = plain_attention(*inputs, **rules)
        recorded.append(weights[0].detach().float())
        return mixed

    before = model.operators
    instead = replace(before, attention=attention)
    replace_functions(model, before, instead)
    try:
        yield recorded
    finally:
        replace_functions(model, instead, before)


@contextmanager
def _differentiable_embedding(model: GPT) -> Iterator[list[Tensor]]:
    """The vectors of the tokens, (1, seq, hidden), from which gradients are computed within."""
    found: list[Tensor] = []

    def begin(module: Any, inputs: Any, vectors: Tensor) -> Tensor:
        found.append(vectors.detach().requires_grad_())
        return found[-1]

    with _hook(model.embedding.register_forward_hook(begin)):
        yield found


@contextmanager
def _recorded_depths(model: GPT) -> Iterator[list[Tensor]]:
    """The residual stream before the first block and after each, (1, seq, hidden) each."""
    found: list[Tensor] = []

    def before(module: Any, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].detach())

    def after(module: Any, inputs: Any, given: Any) -> None:
        stream: Tensor = given[0] if module.has_experts else given
        found.append(stream.detach())

    with ExitStack() as hooks:
        hooks.enter_context(_hook(model.blocks[0].register_forward_pre_hook(before)))
        for block in model.blocks:
            hooks.enter_context(_hook(block.register_forward_hook(after)))
        yield found


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    remove: Callable[[], None] = handle.remove
    try:
        yield
    finally:
        remove()
