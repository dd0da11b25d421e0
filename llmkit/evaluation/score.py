"""Log-likelihoods of answers: batches of similar length, shared out over the data-parallel ranks."""

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
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Plan


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

    text: how text becomes tokens. score: as `Engine.score`. model: to write answers, which each data-parallel
    rank does for itself; all ranks call it together. context_length: most tokens that a row may have. tokens:
    of a batch, padding included; it has one row at least. rows: of a batch, where that is chosen instead.
    multiple: the length of a batch is one of this. before_batch: called on all ranks before each of their
    batches; what it raises on all of them ends the scoring.
    """

    mesh: Mesh
    text: HubText
    score: Callable[[Iterable[Batch]], LossSum]
    model: Callable[[], Model]
    context_length: int
    tokens: int
    rows: int | None = None
    multiple: int = 1
    before_batch: Callable[[], object] = lambda: None

    @classmethod
    def of_model(
        cls, model: Model, text: HubText, mesh: Mesh, tokens: int, rows: int | None = None
    ) -> Scorer:
        """A model that no engine holds, such as one that was loaded; `mesh` is that of its shards."""
        def score(batches: Iterable[Batch]) -> LossSum:
            return score_rows(model, model, batches)

        return cls(mesh, text, score, lambda: model, model.context_length, tokens, rows)

    @classmethod
    def of_engine(
        cls, engine: Engine, plan: Plan, text: HubText, mesh: Mesh, tokens: int,
        before_batch: Callable[[], object],
    ) -> Scorer:  # fmt: skip
        """The model of a run with its weights of now."""
        return cls(
            mesh, text, engine.score, lambda: complete_model(engine.model, plan, mesh),
            engine.model.context_length, tokens, before_batch=before_batch,
            multiple=plan.layout.tensor_parallel_size if plan.layout.sequence_parallel else 1,
        )  # fmt: skip


def loglikelihoods(scorer: Scorer, questions: Sequence[Question]) -> list[Score]:
    """How likely each continuation is after its context. Collective; the same on all ranks.

    Where both are longer than the model can see, the context is cut on its left.
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
    order = sorted(range(len(inputs)), key=lambda i: (-len(inputs[i]), inputs[i]))
    data = scorer.mesh["data"]
    rounds = list(_rounds([len(inputs[i]) for i in order], data.size, scorer))
    mine = [[order[place] for place in places[data.rank :: data.size]] for places in rounds]

    def batches() -> Iterator[Batch]:
        for places, numbers in zip(rounds, mine, strict=True):
            scorer.before_batch()
            rows = [(inputs[i], len(questions[i].continuation)) for i in numbers]
            length = len(inputs[order[places[0]]]) - 1
            yield _batch(rows, -(-length // scorer.multiple) * scorer.multiple).to(scorer.mesh.device)

    found = scorer.score(batches())
    assert found.likeliest is not None
    numbers = torch.tensor([number for each in mine for number in (each or [-1])])
    scores = torch.zeros((len(questions), 2), dtype=torch.float64)
    if scorer.mesh["context", "tensor"].rank == 0:
        values = torch.stack((-found.nats.double(), (found.likeliest == found.targets).double()), 1).cpu()
        scores[numbers[numbers >= 0]] = values[numbers >= 0]
    if scorer.mesh.world_size > 1:  # each score is one rank's, and zero on the others
        dist.all_reduce(scores, group=scorer.mesh.control)
    return [Score(log_likelihood, greedy == 1.0) for log_likelihood, greedy in scores.tolist()]


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


def _batch(rows: Sequence[tuple[list[int], int]], length: int) -> Batch:
    """Rows of ids, each with how many of the last ones are targets; without any, a row without a target."""
    tokens = torch.zeros((max(1, len(rows)), length), dtype=torch.int64)
    labels = torch.full_like(tokens, IGNORE)
    for row, (ids, targets) in enumerate(rows):
        tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        labels[row, len(ids) - 1 - targets : len(ids) - 1] = torch.tensor(ids[len(ids) - targets :])
    return Batch(tokens, labels)
