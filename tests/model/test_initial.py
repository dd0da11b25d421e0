"""Initial weights depend on seed, name and element index, and on nothing else."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from llmkit.model import initial
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, initial_model


def draw(
    count: int, start: int = 0, seed: int = 3, name: str = "blocks.0.mlp.up_proj.weight", std: float = 1.0
) -> torch.Tensor:
    out = torch.empty(count)
    initial.normal_(out, std, initial.stream_key(seed, name), (2**40,), ((0, 2**40),), start)
    return out


def test_any_part_can_be_drawn_alone(monkeypatch):
    whole = draw(5000)
    monkeypatch.setattr(initial, "_CHUNK", 137)
    parts = [draw(count, start) for start, count in ((0, 1), (1, 1000), (1001, 3999))]
    assert torch.equal(torch.cat(parts), whole)


def test_threads_change_no_value():
    """Not even of parts of another size than a single thread draws."""
    drawn, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            drawn.append(torch.empty(3 * (1 << 17) + 5))
            initial.normal_(drawn[-1], 0.02, 7, drawn[-1].shape, ((0, len(drawn[-1])),))
        finally:
            torch.set_num_threads(before)
    assert drawn[0].equal(drawn[1])


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


@pytest.mark.parametrize("chunk", [1 << 20, 137])
def test_any_region_of_a_tensor_can_be_read(monkeypatch, chunk):
    weights = InitialWeights(GPT(LLAMA_STYLE, seed=None), 5)
    assert set(weights.shapes) == {
        part.name for each in GPT(LLAMA_STYLE).parameter_slices().values() for part in each
    }
    monkeypatch.setattr(initial, "_CHUNK", chunk)
    name = "blocks.1.mlp.down_proj.weight"
    rows, columns = weights.shapes[name]
    whole = weights.read(name, "master")
    assert whole.dtype == torch.float32 and whole.shape == (rows, columns)
    for box in (
        ((3, 17), (0, columns)),
        ((0, rows), (columns // 2, columns)),
        ((5, 6), (7, 8)),
        ((4, 4), (0, 3)),
    ):
        region = whole[box[0][0] : box[0][1], box[1][0] : box[1][1]]
        assert torch.equal(weights.read(name, "master", box), region)
        middle = (region.numel() // 3, region.numel() - region.numel() // 4)
        assert torch.equal(weights.read(name, "master", box, middle), region.reshape(-1)[slice(*middle)])
    for norm in ("norm.weight", "blocks.0.attention_norm.weight"):
        assert bool((weights.read(norm, "master", range=(1, 4)) == 1.0).all())


def test_cut_models_start_from_slices_of_the_same_weights():
    weights = InitialWeights(GPT(GPT2_STYLE, seed=None), 3)
    for rank in range(4):
        for parts in GPT(GPT2_STYLE, tp=TensorParallel(rank=rank, size=4)).parameter_slices().values():
            for part in parts:
                whole = weights.read(part.name, "master")
                region = whole[tuple(slice(low, high) for low, high in part.box)]
                assert torch.equal(weights.read(part.name, "master", part.box), region), part.name


def test_stacked_projections_start_like_separate_ones():
    model = initial_model(GPT2_STYLE, 7)
    name = "blocks.1.attention.k_proj.weight"
    part = next(p for p in model.parameter_slices()["blocks.1.attention.qkv.weight"] if p.name == name)
    alone = draw(math.prod(part.shape), seed=7, name=name, std=GPT2_STYLE.initializer_range)
    assert torch.equal(model.blocks[1].attention.qkv.weight[part.start : part.stop], alone.view(part.shape))


def test_padding_changes_no_weight_and_is_zero():
    bare_shape = replace(LLAMA_STYLE, padded_vocab_size=LLAMA_STYLE.vocab_size)
    padded, bare = initial_model(LLAMA_STYLE, 1), initial_model(bare_shape, 1)
    for (name, a), b in zip(padded.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(a[: b.shape[0]], b), name
        assert not a[b.shape[0] :].any(), name


@pytest.mark.parametrize(("how", "expected"), [("scaled", 0.02 / 2.0), ("normal", 0.02), ("zero", 0.0)])
def test_residual_outputs_start_smaller(how, expected):
    shape = replace(LLAMA_STYLE, hidden_size=120, num_hidden_layers=2, residual_init=how)
    model = initial_model(shape, 0)
    assert model.blocks[0].mlp.down_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert model.blocks[1].attention.o_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert model.blocks[0].mlp.gate_up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert bool((model.norm.weight == 1.0).all())


def test_embedding_and_head_start_as_their_own_settings_say():
    other = {"embedding_initializer_range": 0.8, "head_initializer_range": 0.001, "hidden_size": 120}
    model = initial_model(replace(LLAMA_STYLE, **other), 0)
    rows = slice(LLAMA_STYLE.vocab_size)
    assert model.embedding.weight[rows].std().item() == pytest.approx(0.8, rel=0.05)
    assert model.head.weight[rows].std().item() == pytest.approx(0.001, rel=0.05)
    assert not initial_model(replace(LLAMA_STYLE, head_initializer_range=0.0), 0).head.weight.any()


def test_value_embeddings_and_scalars_start_neutral():
    shape = replace(LLAMA_STYLE, value_embeddings=True, residual_scalars=True, bigram_embedding=30)
    block = initial_model(shape, 0).blocks[1]
    scalars, values = block.residual_scalars, block.attention.value_embedding
    assert (scalars.stream.tolist(), scalars.embedding.tolist()) == ([1.0], [0.0])
    assert not values.gate.weight.any() and scalars.bigram.tolist() == [pytest.approx(0.05)]
    assert values.weight.std().item() == pytest.approx(0.02, rel=0.05)
