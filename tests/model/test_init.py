"""Initial weights depend on seed, name and element index, and on nothing else."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from llmkit.model import init
from llmkit.model.gpt import GPT
from tests.shapes import GPT2_STYLE, LLAMA_STYLE


def draw(
    count: int, start: int = 0, seed: int = 3, name: str = "blocks.0.mlp.up_proj.weight"
) -> torch.Tensor:
    out = torch.empty(count)
    init.normal_(out, 1.0, seed=seed, name=name, start=start)
    return out


def test_any_part_can_be_drawn_alone(monkeypatch):
    whole = draw(5000)
    monkeypatch.setattr(init, "_CHUNK", 137)
    parts = [draw(count, start) for start, count in ((0, 1), (1, 1000), (1001, 3999))]
    assert torch.equal(torch.cat(parts), whole)


def test_values_are_standard_normal():
    values = draw(2_000_000).double()
    assert abs(values.mean()) < 4 / math.sqrt(values.numel())
    assert values.std() == pytest.approx(1.0, abs=0.003)
    assert (values**4).mean() == pytest.approx(3.0, abs=0.03)
    assert 4.5 < values.abs().max() < 5.5
    assert torch.unique(values).numel() > 0.85 * values.numel()  # 24 bits: some meet
    for quantile in (0.01, 0.1, 0.5, 0.9, 0.99):
        expected = math.sqrt(2) * torch.erfinv(torch.tensor(2 * quantile - 1, dtype=torch.float64))
        assert float((values < expected).double().mean()) == pytest.approx(quantile, abs=0.002)


def test_streams_are_independent():
    a = draw(200_000)
    for other in (draw(200_000, seed=4), draw(200_000, name="blocks.1.mlp.up_proj.weight"), draw(200_000, 1)):
        assert abs(float(torch.corrcoef(torch.stack([a, other]))[0, 1])) < 0.01


def test_equals_the_same_computation_in_python_integers():
    """splitmix64 with unbounded integers, and the inverse normal distribution of the standard library."""
    key = int.from_bytes(hashlib.blake2b(b"9:embedding.weight", digest_size=8).digest(), "little")
    wanted = []
    for index in [0, 1, 2, 3, 1_000_003]:
        z = (index * 0x9E3779B97F4A7C15 + key) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        wanted.append(NormalDist().inv_cdf((2 * (z >> 40) + 1) / 2**25))
    first = draw(4, seed=9, name="embedding.weight").tolist()
    last = draw(1, 1_000_003, seed=9, name="embedding.weight").tolist()
    assert first + last == pytest.approx(wanted, rel=1e-5)


def test_stacked_projections_start_like_separate_ones():
    model = GPT(GPT2_STYLE)
    model.initialise(7)
    name = "blocks.1.attention.k_proj.weight"
    part = next(p for p in model.parts()["blocks.1.attention.qkv.weight"] if p.name == name)
    alone = torch.empty(part.shape)
    init.normal_(alone, GPT2_STYLE.initializer_range, seed=7, name=name)
    assert torch.equal(model.blocks[1].attention.qkv.weight[part.start : part.stop], alone)


def test_padding_changes_no_weight_and_is_zero():
    padded, bare = GPT(LLAMA_STYLE), GPT(replace(LLAMA_STYLE, padded_vocab_size=LLAMA_STYLE.vocab_size))
    padded.initialise(1)
    bare.initialise(1)
    for (name, a), b in zip(padded.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(a[: b.shape[0]], b), name
        assert not a[b.shape[0] :].any(), name


@pytest.mark.parametrize(("scaled", "expected"), [(True, 0.02 / 2.0), (False, 0.02)])
def test_residual_outputs_start_smaller(scaled, expected):
    shape = replace(LLAMA_STYLE, hidden_size=120, num_hidden_layers=2, scaled_residual_init=scaled)
    model = GPT(shape)
    model.initialise(0)
    assert model.blocks[0].mlp.down_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert model.blocks[0].mlp.gate_up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert bool((model.norm.weight == 1.0).all())
