"""Log-probabilities of prompts longer than one chunk, against one position at a time."""

from __future__ import annotations

import pytest
import torch

from llmkit.serve import prompt_scores
from tests.shapes import LLAMA_STYLE, random_model


def test_each_position_on_its_own_in_chunks(monkeypatch):
    monkeypatch.setattr(prompt_scores, "POSITIONS", 3)
    model = random_model(LLAMA_STYLE).eval().requires_grad_(False)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    first, *found = prompt_scores.prompt_scores(model, ids, 4)
    assert (first.id, first.logprob, first.top) == (3, None, ())
    for count, token in enumerate(found, 1):
        logprobs = model.logits(torch.tensor([ids[:count]]))[0].log_softmax(-1)
        assert token.id == ids[count] and token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-5)
        best = logprobs.topk(4)
        assert [id for id, _ in token.top] == best.indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [token.id for token in prompt_scores.prompt_scores(model, [7], 2)] == [7]
