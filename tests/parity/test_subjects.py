"""The rows that the cases train on are unlike enough to show a mistake."""

from __future__ import annotations

import pytest
import torch

from llmkit.batch import IGNORE
from llmkit.parity.subjects import LENGTH, MODELS, ROWS, RandomWeights, count_targets, global_batch, share


@pytest.mark.parametrize(("data_size", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_shares_are_the_batch_once_and_differ_in_targets(data_size, accumulation):
    batch = global_batch(MODELS["odd"], 0, masked=True)
    shares = [share(batch, rank, data_size, accumulation) for rank in range(data_size)]
    for column in range(3):
        parts = [micro_batch[column] for each in shares for micro_batch in each]
        assert torch.equal(torch.cat(parts), batch[column])
    counts = [count_targets(micro_batch) for each in shares for micro_batch in each]
    assert len(set(counts)) == len(counts) == data_size * accumulation
    assert sum(counts) == count_targets(batch)


def test_documents_end_where_their_bounds_say():
    for micro_batch in share(global_batch(MODELS["odd"], 0, masked=True), 1, 2, 3):
        rows = torch.arange(len(micro_batch.documents))[:, None] * 100
        numbers = (micro_batch.documents + rows).flatten()
        lengths = micro_batch.bounds.diff()
        assert micro_batch.bounds[-1] == numbers.numel()
        assert torch.equal(lengths[lengths > 0].long(), numbers.unique_consecutive(return_counts=True)[1])


def test_every_row_has_several_documents_that_never_go_back():
    documents = global_batch(MODELS["gpt2"], 3, masked=True).documents
    assert documents.shape == (ROWS, LENGTH) and (documents.diff() >= 0).all()
    assert all(len(row.unique()) > 1 for row in documents)
    assert global_batch(MODELS["gpt2"], 3, masked=False).documents is None


def test_steps_differ_and_labels_are_tokens_of_the_vocabulary():
    first, second = (global_batch(MODELS["gpt2"], step, masked=False) for step in (0, 1))
    assert not torch.equal(first.tokens, second.tokens)
    targets = first.labels[first.labels != IGNORE]
    assert int(targets.min()) >= 0 and int(targets.max()) < MODELS["gpt2"].vocab_size


def test_the_large_model_has_a_matrix_of_more_than_10_million_elements():
    assert max(tensor.numel() for tensor in RandomWeights(MODELS["large"]).tensors.values()) > 10**7


@pytest.mark.parametrize("model", MODELS)
def test_no_weight_starts_at_a_value_that_hides_its_use(model):
    source = RandomWeights(MODELS[model])
    for name, tensor in source.tensors.items():
        assert tensor.numel() == 1 or tensor.std() > 0.05, name
        assert tensor.abs().min() > 0 and (tensor != 1).all(), name
    name = "blocks.0.attention.o_proj.weight"
    box = ((3, 9), (10, 30))
    assert torch.equal(source.read(name, "master", box), source.tensors[name][3:9, 10:30])
    piece = source.read(name, "master", box, (15, 50))
    assert torch.equal(piece, source.tensors[name][3:9, 10:30].reshape(-1)[15:50])
