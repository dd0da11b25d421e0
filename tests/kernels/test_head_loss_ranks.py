"""A head of which ranks have parts: what is on its way beside which product, and the order of tokens.

Gradients over several ranks: test_tensor_parallel.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from llmkit.batch import LossSum
from llmkit.kernels import head_loss, head_loss_chunks
from llmkit.kernels.head_loss_ranks import Ranks
from tests.kernels.head_loss_cases import OBJECTIVES, TERMS, Case, check

FORMS = {"full": head_loss.head_loss, "chunked": head_loss_chunks.head_loss}
MESSAGE = {True: "reduce_scatter_tensor", False: "all_reduce_"}


@pytest.fixture(params=["kept", "in chunks", "full"])
def form(request, monkeypatch):
    """A form, or which of its two ways the one in chunks takes."""
    if request.param == "in chunks":
        monkeypatch.setattr(head_loss_chunks, "BUFFER_BYTES", 0)
    return FORMS.get(request.param, head_loss_chunks.head_loss)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_values_and_gradients_are_those_without_a_group(alone, form, pieces, objective):
    def sharded(hidden: Tensor, *others: object, **options: object) -> LossSum:
        hidden = hidden.transpose(0, 1) if pieces else hidden
        return form(hidden, *others, alone, pieces=pieces, **options)

    check(sharded, Case.of(torch.float32), TERMS["all"], objective, 2e-6)


@pytest.mark.parametrize("pieces", [False, True])
def test_the_hidden_states_gradient_is_summed_while_the_weights_is_computed(alone, form, pieces):
    case = Case.of(torch.float32)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        given = hidden.transpose(0, 1) if pieces else hidden
        loss = form(given, weight, *case[2:], alone, pieces=pieces)
        loss.nats.sum().backward()
    called = sorted(seen.events(), key=lambda event: event.time_range.start)
    names = [event.name.rpartition("::")[2] for event in called]
    found = [name for name in names if name in ("mm", "addmm_", "wait_tensor", *MESSAGE.values())]
    at = found.index(MESSAGE[pieces])
    assert found.count(MESSAGE[pieces]) == 1
    assert found[at - 1] == "mm" and found[at + 1] in ("mm", "addmm_") and found[at + 2] == "wait_tensor"


def test_tokens_are_ordered_as_pieces_of_the_sequence_are():
    labels = torch.arange(6).view(2, 3)
    for pieces, order in ((False, [0, 1, 2, 3, 4, 5]), (True, [0, 3, 1, 4, 2, 5])):
        ranks = Ranks("", 1, pieces)
        tokens = ranks.ordered(labels).flatten()
        assert tokens.tolist() == order
        assert ranks.by_row(torch.stack((tokens, 2 * tokens)), 2).tolist() == [[3, 12], [6, 24]]
        assert ranks.by_label(tokens, 2).tolist() == labels.tolist()
        assert ranks.by_token(torch.tensor([[7, 9]]), 3).tolist() == [[7 if at < 3 else 9 for at in order]]
