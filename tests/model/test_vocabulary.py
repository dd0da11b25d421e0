"""Embedding and head on one rank, and which rows each of several ranks holds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmkit.batch import IGNORE
from llmkit.model.vocabulary import Embedding, Head, Positions
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import GPT2_STYLE, randomise

ALONE = TensorParallel()


def test_the_loss_is_that_of_the_tokens_without_padding():
    embedding = randomise(Embedding(11, 6, ALONE, 16))
    head = Head(11, 6, ALONE, 16, embedding)
    assert head.weight is embedding.weight
    tokens = torch.randint(11, (2, 5))
    labels = torch.randint(11, (2, 5))
    labels[0, 3:] = IGNORE
    hidden = embedding(tokens)
    loss = head(hidden, labels)
    logits = F.embedding(tokens, embedding.weight) @ embedding.weight[:11].T
    wanted = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(loss.nats, wanted.view(2, 5).sum(-1))
    assert loss.targets.tolist() == [3, 5]
    torch.testing.assert_close(head.logits(hidden), logits)
    loss.nats.sum().backward()
    assert not embedding.weight.grad[11:].any() and embedding.weight.grad[:11].any(-1).all()


@pytest.mark.parametrize(
    ("padded", "boxes"),
    [
        (97, [(0, 33), (33, 66), (66, 97)]),
        (128, [(0, 43), (43, 86), (86, 97)]),
        (300, [(0, 97), (97, 97), (97, 97)]),
    ],
)
def test_ranks_hold_consecutive_tokens_and_the_last_ones_padding(padded, boxes):
    for rank, (low, high) in enumerate(boxes):
        layer = Embedding(97, 6, TensorParallel(rank, 3), padded)
        (found,) = layer.parameter_slices("embedding")["weight"]
        assert found.box == ((low, high), (0, 6)) and (found.start, found.stop) == (
            0,
            high - low,
        )
        assert len(layer.weight) == -(-padded // 3) >= high - low


@pytest.mark.parametrize("rank", range(4))
def test_learned_positions_of_a_piece_of_the_sequence(rank):
    layer = randomise(Positions(GPT2_STYLE, TensorParallel(rank, 4)))
    piece = Positions(GPT2_STYLE, TensorParallel(rank, 4, sequence_parallel=True))
    piece.load_state_dict(layer.state_dict())
    for positions in (torch.arange(12), torch.randint(40, (3, 12))):
        whole = layer(positions).transpose(0, 1)  # (seq, batch or 1, hidden)
        assert torch.equal(piece(positions), whole[3 * rank : 3 * rank + 3])
