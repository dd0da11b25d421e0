"""Scores of answers on the GPU: as on the CPU, and nothing is compiled for their shapes."""

from __future__ import annotations

import random

import pytest
import torch

from llmkit.batch import Batch
from llmkit.engine.base import score_rows
from llmkit.evaluation.score import Question, Scorer, loglikelihoods
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh
from tests.evaluation.test_score import TEXT
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def questions() -> list[Question]:
    draw = random.Random(0)
    ids = [[draw.randrange(97) for _ in range(draw.randint(3, 38))] for _ in range(40)]
    choices = [Question(each[:2], [*each[2:-1], last]) for each in ids[:10] for last in (1, 2, 3)]
    return [Question(each[:2], each[2:]) for each in ids] + choices


def scores(model: GPT, device: torch.device) -> torch.Tensor:
    scorer = Scorer.of_model(model.to(device), TEXT, Mesh(device=device), tokens=200)
    return torch.tensor([score.log_likelihood for score in loglikelihoods(scorer, questions())])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
def test_scores_are_those_of_the_cpu_in_fp32(device: torch.device, precision: str, shape) -> None:
    wanted = scores(random_model(shape).eval(), torch.device("cpu"))
    model = random_model(shape).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(TYPES[precision])
    found = scores(model, device)
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.cuda
def test_nothing_is_compiled_for_their_shapes() -> None:
    device = torch.device("cuda")
    model = random_model(LLAMA_STYLE).to(device)
    model.compile_parts(pytest.fail)
    tokens = torch.randint(97, (2, 24), device=device)
    model(Batch(tokens, tokens)).nats.sum().backward()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for length in (5, 9, 33):
        score_rows(model, model, [Batch(tokens[:, :length], tokens[:, :length])])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
