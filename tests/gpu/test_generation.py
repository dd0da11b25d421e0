"""Rows that are generated together: as if each were alone, in fp32 to the token, in bf16 to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.generation.sampling import Sampling
from llmkit.generation.session import Request, Session, generate, generate_batch
from tests.shapes import LLAMA_STYLE, random_model


def model(device: torch.device, **changes):
    """Wide enough on a GPU for its kernels."""
    sizes = {"max_position_embeddings": 40}
    if device.type == "cuda":
        sizes |= {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
        sizes |= {"max_position_embeddings": 300}
    return random_model(replace(LLAMA_STYLE, **(sizes | changes))).to(device).eval()


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 7}, {"attn_logit_softcapping": 5.0}], ids=str)
def test_the_tokens_of_a_row_do_not_depend_on_those_beside_it(device, changes):
    made = model(device, **changes)
    longest = made.context_length
    prompts = [[n % 101 for n in range(length)] for length in (1, 5, 17, longest - 3)]
    for way in (Sampling(temperature=0.0), Sampling(temperature=1.0, top_p=0.9, seed=3)):
        alone = [list(generate(made, prompt, 30, way, stops=())) for prompt in prompts]
        together: list[list[int]] = [[] for _ in prompts]
        for number, token in generate_batch(made, prompts, 30, way, stops=(), rows=3):
            together[number].append(token.id)
        assert together == alone


def test_a_row_goes_on_from_what_another_has_read(device):
    made = model(device)
    session, ids = Session(made, keep=True), [n % 101 for n in range(9)]
    for turn in range(3):
        ids = [*ids, turn, 7]
        wanted = list(generate(made, ids, 6, Sampling(temperature=0.0), stops=()))
        session.add(Request(ids, 6, Sampling(temperature=0.0)))
        found = []
        while len(session):
            found += [token.id for _, token in session.step()]
        assert found == wanted
        ids += found


def test_log_probabilities_in_bf16_are_those_of_fp32_up_to_rounding(device):
    exact, rounded = model(device), model(device).to(torch.bfloat16)
    prompts, found = [[n % 101 for n in range(length)] for length in (3, 19)], []
    for made in (exact, rounded):
        session = Session(made)
        for prompt in prompts:
            session.add(Request(prompt, 1, Sampling(temperature=0.0), logprobs=20))
        found.append([dict(token.top) for _, token in sorted(session.step(), key=lambda each: each[0])])
    for wide, narrow in zip(*found, strict=True):
        shared = wide.keys() & narrow.keys()
        assert len(shared) > 10
        assert max(abs(wide[id] - narrow[id]) for id in shared) < 0.5
