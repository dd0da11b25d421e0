"""Models that are not ours: what `Model` gives them, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmkit.batch import IGNORE, Batch, LossSum
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.native import NativeEngine
from llmkit.errors import UserError
from llmkit.model.base import Initial, Model
from llmkit.model.initial import InitialWeights, normal_, stream_key
from llmkit.parallel.slices import full_box, full_slice
from llmkit.precision import PRECISIONS

VOCABULARY, WIDTH = 13, 6
TOKENS = torch.randint(VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(1))
LABELS = TOKENS.roll(-1, 1).masked_fill(torch.arange(5) == 4, IGNORE)
BATCH = Batch(TOKENS, LABELS)
TARGETS = 12


class Bigram(Model):
    """Predicts a token from the one before; with a balance loss and a count beside the loss."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.weight = weight

    def forward(self, batch: Batch) -> LossSum:
        logits = self.head(self.norm(self.embedding(batch.tokens))).float()
        nats = F.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        targets = (batch.labels != IGNORE).sum(-1)
        extras = {"balance": self.weight * logits.square().sum(), "rows": torch.tensor(float(len(targets)))}
        return LossSum(nats.view_as(batch.labels).sum(-1), targets, extras if self.weight else {})


def start(model: Model) -> NativeEngine:
    settings = Optimizer(eps=1e-5, learning_rate=0.01)
    engine = NativeEngine(model, settings, precision=PRECISIONS["fp32"], gradient_clipping=0.0)
    engine.write_pieces(InitialWeights(model, 3), 0)
    return engine


def test_every_parameter_of_a_foreign_model_is_a_full_tensor():
    model = Bigram()
    assert model.parameter_slices() == {
        name: [full_slice(name, tuple(p.shape))] for name, p in model.named_parameters()
    }


def test_initial_values_depend_on_seed_name_and_shape_alone():
    engine = start(Bigram())
    weights = dict(engine.model.named_parameters())
    drawn = torch.empty(VOCABULARY * WIDTH)
    shape = (VOCABULARY, WIDTH)
    normal_(drawn, 0.02, stream_key(3, "head.weight"), shape, full_box(shape))
    assert torch.equal(weights["head.weight"].detach(), drawn.view(shape))
    assert bool((weights["norm.weight"] == 1).all()) and not weights["norm.bias"].any()


def test_a_model_may_choose_its_initial_values():
    class Narrow(Bigram):
        def initial(self, name, shape):
            return Initial(2.0, 0.5) if name == "head.bias" else super().initial(name, shape)

    model = Narrow()
    bias = InitialWeights(model, 0).read("head.bias", "master")
    drawn = torch.empty(VOCABULARY)
    normal_(drawn, 0.5, stream_key(0, "head.bias"), (VOCABULARY,), ((0, VOCABULARY),))
    assert torch.equal(bias, drawn + 2.0)
    assert bool((InitialWeights(model, 0).read("norm.weight", "master") == 1).all())


def test_a_foreign_model_trains_as_plain_pytorch_would():
    engine, twin = start(Bigram()), Bigram()
    twin.load_state_dict(engine.model.state_dict())
    matrices = [p for p in twin.parameters() if p.dim() > 1]
    vectors = [p for p in twin.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1,
    )  # fmt: skip
    for _ in range(5):
        result = engine.train_step([Batch(TOKENS[:1], LABELS[:1]), Batch(TOKENS[1:], LABELS[1:])], TARGETS)
        reference.zero_grad()
        loss = twin(BATCH).nats.sum()
        (loss / TARGETS).backward()
        reference.step()
        assert float(result.loss_sum) == pytest.approx(loss.item(), rel=1e-6)
    for a, b in zip(engine.model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_an_extra_with_a_gradient_is_minimised_and_all_extras_are_summed():
    plain, balanced = start(Bigram()), start(Bigram(weight=0.3))
    halves = [Batch(TOKENS[:1], LABELS[:1]), Batch(TOKENS[1:], LABELS[1:])]
    model = balanced.model
    loss = model(BATCH)
    (loss.objective / TARGETS).backward()
    wanted = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    expected = {name: value.item() for name, value in loss.extras.items()}
    result, without = balanced.train_step(halves, TARGETS), plain.train_step(halves, TARGETS)
    assert float(result.grad_norm) == pytest.approx(wanted, rel=1e-5) != float(without.grad_norm)
    assert float(result.loss_sum) == pytest.approx(float(without.loss_sum), rel=1e-6)  # extras are no loss
    assert float(result.extras["balance"]) == pytest.approx(expected["balance"], rel=1e-5)
    assert float(result.extras["rows"]) == 3.0 and not without.extras


def test_evaluation_is_that_of_evaluation_mode():
    class Dropping(Bigram):
        def forward(self, batch):
            loss = super().forward(batch)
            return loss._replace(nats=F.dropout(loss.nats, 0.5, self.training))

    model = Dropping()
    found = start(model).evaluate([BATCH])
    assert torch.equal(found.nats, Bigram.forward(model.eval(), BATCH).nats.detach())


@pytest.mark.parametrize(
    "loss, problem",
    [
        (lambda nats, targets: nats.mean(), r"it returned a tensor of shape \(\)"),
        (lambda nats, targets: (nats, targets), "it returned tuple"),
        (
            lambda nats, targets: LossSum(nats.sum(), targets),
            r"nats must be a tensor of shape \(3,\), and is of shape",
        ),
        (lambda nats, targets: LossSum(nats, targets.float()), "targets must be of a integer type"),
        (lambda nats, targets: LossSum(nats.bfloat16(), targets), "nats must be summed in float32"),
        (lambda nats, targets: LossSum(nats, 3), "targets must be a tensor of shape .*, and is int"),
        (
            lambda nats, targets: LossSum(nats, targets, {"load": nats}),
            "extra 'load' must be a tensor without",
        ),
    ],
)
def test_what_is_no_loss_of_the_batch_is_refused(loss, problem):
    class Wrong(Bigram):
        def forward(self, batch):
            right = super().forward(batch)
            return loss(right.nats, right.targets)

    engine = start(Wrong())
    with pytest.raises(
        UserError, match=rf"forward\(batch\) of Wrong must return .* 3 sequences; .*{problem}"
    ):
        engine.train_step([BATCH], TARGETS)


def test_a_model_without_a_forward_says_so():
    with pytest.raises(NotImplementedError, match="Model has no forward"):
        Model()(BATCH)
