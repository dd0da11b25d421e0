"""What all engines share: the sums of a step, and evaluation."""

from __future__ import annotations

import pytest
import torch

from llmkit.batch import Batch, LossSum
from llmkit.engine.base import StepSums, evaluate_rows, without_targets
from llmkit.kernels.operators import Operators
from llmkit.model.base import Model
from llmkit.parallel.mesh import Mesh
from tests.shapes import LLAMA_STYLE, random_model

CPU = torch.device("cpu")
BATCH = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64))


def loss(nats: list[float], **extras: float) -> LossSum:
    values = torch.tensor(nats, requires_grad=True)
    sums = {name: torch.tensor(value) for name, value in extras.items()}
    return LossSum(values * 1.0, torch.ones(len(nats), dtype=torch.int64), sums)


def test_sums_are_over_micro_batches_in_double_precision():
    sums = StepSums(Mesh())
    sums.start(CPU)
    for micro_batch in (loss([1.0, 2.0], a=1.0), loss([2.0**-30], b=5.0, a=2.0)):
        sums.add(micro_batch, BATCH)
    total, extras, by_source, by_position, *_ = sums.over_ranks()
    assert by_source is by_position is None
    assert total.item() == 3.0 + 2.0**-30 and not total.requires_grad
    assert {name: value.item() for name, value in extras.items()} == {"a": 3.0, "b": 5.0}


def test_without_extras_there_are_none():
    sums = StepSums(Mesh())
    sums.start(CPU)
    sums.add(loss([4.0]), BATCH)
    total, extras, *_ = sums.over_ranks()
    assert total.item() == 4.0 and extras == {}


def test_parts_of_the_loss_are_summed_over_micro_batches():
    sums, tokens = StepSums(Mesh()), torch.zeros(2, 40, dtype=torch.int64)
    sums.start(CPU, by_position=True)
    for nats, of in ((1.0, [[True, False], [False, True]]), (3.0, [[False, True], [False, False]])):
        by_token = torch.full((2, 40), nats)
        made = LossSum(by_token.sum(-1), torch.full((2,), 40), {"a": torch.tensor(5.0)}, by_token=by_token)
        sums.add(made, Batch(tokens, tokens, sources=torch.tensor(of)))
    total, extras, by_source, by_position, *_ = sums.over_ranks()
    assert (total.item(), extras["a"].item()) == (320.0, 10.0)
    assert by_source.tolist() == [[40.0, 40.0], [160.0, 80.0]]
    assert by_position.tolist() == [[128.0, 64.0], [128.0, 64.0], [64.0, 32.0]]


def batch_of(rows: int) -> Batch:
    tokens = torch.zeros(rows, 3, dtype=torch.int64)
    return Batch(tokens, tokens)


def test_an_observer_sees_each_batch_with_its_loss():
    seen = []
    batches = [batch_of(n) for n in (2, 1)]
    evaluate_rows(
        Modes(False), Modes(False), batches, lambda batch, loss: seen.append((batch, len(loss.nats)))
    )
    assert seen == [(batches[0], 2), (batches[1], 1)]


def test_a_step_without_targets_changes_nothing():
    result = without_targets(CPU)
    assert (result.loss_sum.item(), result.targets, result.skipped.item(), dict(result.extras)) == (
        0,
        0,
        0,
        {},
    )


class Modes(Model):
    """Its loss says in which mode it is."""

    def __init__(self, has_dropout: bool) -> None:
        super().__init__()
        self.dropout = has_dropout

    @property
    def has_dropout(self) -> bool:
        return self.dropout

    def forward(self, batch: Batch) -> LossSum:
        rows = len(batch.tokens)
        nats = torch.full((rows,), float(self.training), requires_grad=True)
        return LossSum(nats, torch.full((rows,), 3))


@pytest.mark.parametrize("has_dropout", [True, False])
def test_evaluation_is_without_dropout_and_gives_the_rows_of_all_batches(has_dropout):
    model, batches = Modes(has_dropout), [batch_of(n) for n in (2, 1)]
    found = evaluate_rows(model, model, iter(batches))
    assert found.nats.tolist() == [float(not has_dropout)] * 3 and found.targets.tolist() == [3, 3, 3]
    assert model.training


def test_the_head_makes_no_gradients_in_an_evaluation_though_blocks_stay_as_they_are():
    model = random_model(LLAMA_STYLE)
    model.head.operators = Operators.of({"head_loss": "chunked"})
    tokens = torch.randint(LLAMA_STYLE.vocab_size, (2, 9))
    batch, modes = Batch(tokens, tokens), []

    def forward(batch: Batch) -> LossSum:
        modes.append((model.blocks[0].training, model.head.training))
        loss = model(batch)
        assert not loss.nats.requires_grad
        return loss

    found = evaluate_rows(model, forward, [batch])
    assert modes == [(True, False)]
    loss = model(batch)
    assert loss.nats.requires_grad and not model.evaluating
    torch.testing.assert_close(found.nats, loss.nats.detach())


def test_the_model_trains_on_after_an_evaluation_that_was_given_up():
    def batches():
        yield batch_of(1)
        raise KeyboardInterrupt

    model = Modes(True)
    with pytest.raises(KeyboardInterrupt):
        evaluate_rows(model, model, batches())
    assert model.training
