"""Log-likelihoods of answers: batches of similar length, shared out over data- and context-parallel ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

from llmkit.batch import IGNORE, Batch, LossSum
from llmkit.engine.base import Engine, score_rows
from llmkit.engine.complete import complete_model
from llmkit.errors import UserError
from llmkit.evaluation.hub_text import HubText
from llmkit.model.base import Model
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Plan

MOST_SHARED = 16
"""Answers that a row of tokens scores at most."""


class Question(NamedTuple):
    """Ids of a context, of one token at least, and of what may follow it."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """log_likelihood: of the continuation, in nats. is_greedy: whether all its tokens are the likeliest."""

    log_likelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Scorer:
    """A model that scores rows and writes answers, on the ranks that hold it.

    text: how text becomes tokens. score: as `Engine.score`. model: to write answers, which each copy of it
    does for itself; all ranks call it together. context_length: most tokens that a row may have. tokens:
    of a batch, padding included; it has one row at least. rows: of a batch, where that is chosen instead.
    multiple: the length of a batch is one of this. shares: whether there may be several rows of labels to a
    row of tokens (see `Batch`). before_batch: called on all ranks before each of their batches; what it
    raises on all of them ends the scoring.
    """

    mesh: Mesh
    text: HubText
    score: Callable[[Iterable[Batch]], LossSum]
    model: Callable[[], Model]
    context_length: int
    tokens: int
    rows: int | None = None
    multiple: int = 1
    shares: bool = False
    before_batch: Callable[[], object] = lambda: None

    @classmethod
    def of_model(
        cls, model: Model, text: HubText, mesh: Mesh, tokens: int, rows: int | None = None
    ) -> Scorer:
        """A model that no engine holds, such as one that was loaded; `mesh` is that of its shards."""
        def score(batches: Iterable[Batch]) -> LossSum:
            return score_rows(model, model, batches)

        shares = isinstance(model, GPT)
        return cls(mesh, text, score, lambda: model, model.context_length, tokens, rows, shares=shares)

    @classmethod
    def of_engine(
        cls, engine: Engine, plan: Plan, text: HubText, mesh: Mesh, tokens: int,
        before_batch: Callable[[], object],
    ) -> Scorer:  # fmt: skip
        """The model of a run with its weights of now."""
        return cls(
            mesh, text, engine.score, lambda: complete_model(engine, plan, mesh),
            engine.model.context_length, tokens, before_batch=before_batch,
            shares=isinstance(engine.model, GPT),
            multiple=plan.layout.tensor_parallel_size if plan.layout.sequence_parallel else 1,
        )  # fmt: skip


def loglikelihoods(scorer: Scorer, questions: Sequence[Question]) -> list[Score]:
    """How likely each continuation is after its context. Collective; the same on all ranks.

    Where both are longer than the model can see, the context is cut on its left. Answers that differ in their
    last token alone, such as choices of one token after the same question, are read once.
    """
    if not questions:
        return []
    for question in questions:
        assert question.context
        if len(question.continuation) > scorer.context_length:
            raise UserError(
                f"an answer to score has {len(question.continuation)} tokens, more than the "
                f"{scorer.context_length} that the model can see; leave such texts out of the task"
            )
    inputs = [_input(question, scorer.context_length) for question in questions]
    groups = _groups(inputs, scorer.shares)
    groups.sort(key=lambda group: (-len(inputs[group[0]]), inputs[group[0]]))
    shared = scorer.mesh["data", "context"]
    rounds = list(_rounds([len(inputs[group[0]]) for group in groups], shared.size, scorer))
    mine = [[groups[place] for place in places[shared.rank :: shared.size]] for places in rounds]

    def batches() -> Iterator[Batch]:
        for places, own in zip(rounds, mine, strict=True):
            scorer.before_batch()
            rows = [[(inputs[i], len(questions[i].continuation)) for i in group] for group in own]
            length = len(inputs[groups[places[0]][0]]) - 1
            yield _batch(rows, -(-length // scorer.multiple) * scorer.multiple).to(scorer.mesh.device)

    found = scorer.score(batches())
    assert found.likeliest is not None
    numbers = torch.tensor([number for own in mine for number in _numbers(own)])
    scores = torch.zeros((len(questions), 2), dtype=torch.float64)
    if scorer.mesh["tensor"].rank == 0:
        values = torch.stack((-found.nats.double(), (found.likeliest == found.targets).double()), 1).cpu()
        scores[numbers[numbers >= 0]] = values[numbers >= 0]
    if scorer.mesh.world_size > 1:  # each score is one rank's, and zero on the others
        dist.all_reduce(scores, group=scorer.mesh.control)
    return [Score(log_likelihood, greedy == 1.0) for log_likelihood, greedy in scores.tolist()]


def _groups(inputs: Sequence[list[int]], shares: bool) -> list[list[int]]:
    """Numbers of the questions that a row of tokens can score together: all that the model reads is equal."""
    if not shares:
        return [[number] for number in range(len(inputs))]
    found: dict[tuple[int, ...], list[int]] = {}
    for number, ids in enumerate(inputs):
        found.setdefault(tuple(ids[:-1]), []).append(number)
    return [
        numbers[first : first + MOST_SHARED]
        for numbers in found.values()
        for first in range(0, len(numbers), MOST_SHARED)
    ]


def _numbers(groups: Sequence[Sequence[int]]) -> Iterator[int]:
    """The question of each row of labels that `_batch` makes for these groups; -1: none."""
    most = max(map(len, groups), default=1)
    for group in groups or [[]]:
        yield from (*group, *[-1] * (most - len(group)))


def _input(question: Question, context_length: int) -> list[int]:
    """The ids that the model reads, and behind them the last one of the continuation."""
    return [*question.context, *question.continuation][-(context_length + 1) :]


def _rounds(lengths: Sequence[int], ranks: int, scorer: Scorer) -> Iterator[range]:
    """Ranges of rows, longest first, each of a batch for every rank; lengths: of the rows, descending."""
    place = 0
    while place < len(lengths):
        rows = scorer.rows or max(1, scorer.tokens // lengths[place])
        yield range(place, min(place + rows * ranks, len(lengths)))
        place += rows * ranks


def _batch(groups: Sequence[Sequence[tuple[list[int], int]]], length: int) -> Batch:
    """Of each group ids, which differ in the last one at most, and how many of the last ones are targets.

    A row of tokens a group, and as many rows of labels for each as the largest has. Without any group, a row
    without a target.
    """
    most = max(map(len, groups), default=1)
    tokens = torch.zeros((max(1, len(groups)), length), dtype=torch.int64)
    labels = torch.full((len(tokens) * most, length), IGNORE)
    for row, group in enumerate(groups):
        first = group[0][0][:-1]
        tokens[row, : len(first)] = torch.tensor(first)
        for number, (ids, targets) in enumerate(group):
            place = slice(len(ids) - 1 - targets, len(ids) - 1)
            labels[row * most + number, place] = torch.tensor(ids[len(ids) - targets :])
    return Batch(tokens, labels)
