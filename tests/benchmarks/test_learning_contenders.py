"""The recipes beside llmkit's: their models against other implementations, their updates by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.learning_contenders import NAMES, nanochat, nanogpt, normuon, own, settings
from benchmarks.learning_contenders.plain import adamw_update
from benchmarks.learning_sizes import SIZES, TOY
from llmkit.config.optimizer_section import Optimizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
VOCABULARY = 96
LAYERS3 = replace(TOY, layers=3)
"""An odd number of layers: which get value embeddings, and which is the middle one, shows there."""
TOKENS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def drawn(model: nn.Module) -> nn.Module:
    """The model with weights that leave nothing out."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def test_nanogpt_is_gpt2_without_biases() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    ours = drawn(nanogpt.GPT(TOY, VOCABULARY))
    config = GPT2Config(
        n_layer=TOY.layers, n_embd=TOY.width, n_head=TOY.heads, n_positions=TOY.length, vocab_size=VOCABULARY,
        activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    names = {
        "attention_norm": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj",
        "mlp_norm": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
    }  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
        theirs.transformer.wte.weight.copy_(ours.embedding.weight)
        theirs.transformer.wpe.weight.copy_(ours.positions.weight)
        theirs.transformer.ln_f.weight.copy_(ours.norm.weight)
        for block, other in zip(ours.blocks, theirs.transformer.h, strict=True):
            for name, their in names.items():
                weight = block.get_submodule(name).weight
                other.get_submodule(their).weight.copy_(weight.T if weight.dim() == 2 else weight)

    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_nanochat_without_what_is_new_in_it_is_transformers_nanochat(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import NanoChatConfig, NanoChatForCausalLM

    monkeypatch.setattr(nanochat, "QK_SCALE", 1.0)
    ours = drawn(nanochat.GPT(LAYERS3, 1, VOCABULARY, torch.float32))
    config = NanoChatConfig(
        num_hidden_layers=3, hidden_size=TOY.width, num_attention_heads=TOY.heads, num_key_value_heads=1,
        intermediate_size=4 * TOY.width, vocab_size=VOCABULARY, max_position_embeddings=TOY.length,
        rope_parameters={"rope_type": "default", "rope_theta": nanochat.ROPE_THETA},
        rms_norm_eps=torch.finfo(torch.float32).eps, pad_token_id=0,
    )  # fmt: skip
    theirs = NanoChatForCausalLM(config).eval()
    names = {
        "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj", "attention.out": "self_attn.o_proj", "up": "mlp.fc1",
        "down": "mlp.fc2",
    }  # fmt: skip
    with torch.no_grad():
        theirs.model.embed_tokens.weight.copy_(ours.embedding)
        theirs.lm_head.weight.copy_(ours.head.weight)
        for block, other in zip(ours.blocks, theirs.model.layers, strict=True):
            for name, their in names.items():
                other.get_submodule(their).weight.copy_(block.get_submodule(name).weight)
        ours.residual.fill_(1.0)
        for scalar in (ours.first, ours.smear, ours.backout):
            scalar.zero_()
        for table in ours.value_embeddings.values():
            table.zero_()

    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_what_is_new_in_nanochat_is_what_it_publishes() -> None:
    """Its forward pass once more, without the blocks' inner parts, at weights that leave nothing out."""
    model = drawn(nanochat.GPT(LAYERS3, 1, VOCABULARY, torch.float32))
    assert sorted(model.value_embeddings) == ["0", "2"]
    rotation = model.cos[:9], model.sin[:9]

    x = nanochat.norm(model.embedding[TOKENS])
    rows = [x[:, 0]]
    for t in range(1, 9):
        gate = model.smear * torch.sigmoid(x[:, t, :24] @ model.smear_gate.weight.T)
        rows.append(x[:, t] + gate * x[:, t - 1])
    x = first = torch.stack(rows, dim=1)
    kept = []
    for i, block in enumerate(model.blocks):
        x = model.residual[i] * x + model.first[i] * first
        values = model.value_embeddings[str(i)][TOKENS] if i != 1 else None
        x = block(x, values, rotation)
        kept.append(x)
    logits = nanochat.norm(kept[2] - model.backout * kept[1]) @ model.head.weight.T

    torch.testing.assert_close(model(TOKENS), 15.0 * torch.tanh(logits / 15.0))


def test_a_value_embedding_comes_in_through_its_gate() -> None:
    attention = drawn(nanochat.Attention(LAYERS3, 1, True))
    x = torch.randn(1, 1, TOY.width, generator=torch.Generator().manual_seed(2))
    values = torch.randn(1, 1, TOY.width // TOY.heads, generator=torch.Generator().manual_seed(3))
    rotation = torch.ones(1, 1, 16), torch.zeros(1, 1, 16)

    gate = 3.0 * torch.sigmoid(x[0, 0, :12] @ attention.gate.weight.T)
    value = attention.v.weight @ x[0, 0] + gate * values[0, 0]  # one position attends to itself

    expected = attention.out.weight @ torch.cat([value, value])
    torch.testing.assert_close(attention(x, values, rotation)[0, 0], expected)


@pytest.mark.parametrize("name", ["nanogpt", "nanochat"])
def test_no_position_sees_a_later_one(name: str) -> None:
    if name == "nanogpt":
        model = drawn(nanogpt.GPT(LAYERS3, VOCABULARY))
    else:
        model = drawn(nanochat.GPT(LAYERS3, 1, VOCABULARY, torch.float32))
    changed = TOKENS.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCABULARY

    before, after = model(TOKENS), model(changed)

    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_nanochat_begins_as_it_publishes() -> None:
    torch.manual_seed(0)
    size = SIZES["demo"]
    model = nanochat.GPT(size, size.kv_heads, 4096, torch.float32)

    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.67e6, rel=2e-3)
    assert model.embedding.std().item() == pytest.approx(0.8, rel=0.01)
    assert model.head.weight.std().item() == pytest.approx(0.001, rel=0.01)
    assert model.blocks[0].attention.q.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
    assert model.blocks[0].up.weight.std().item() == pytest.approx(0.4 * 192**-0.5, rel=0.02)
    assert not any(block.down.weight.any() or block.attention.out.weight.any() for block in model.blocks)
    assert model.residual.tolist() == pytest.approx([1.15, 1.1167, 1.0833, 1.05], abs=1e-4)
    assert model.first.tolist() == pytest.approx([0.20, 0.15, 0.10, 0.05])


def test_schedules_are_those_of_the_recipes() -> None:
    assert nanochat.rate_share(1, 1000) == 1 / 40
    assert nanochat.rate_share(40, 1000) == nanochat.rate_share(351, 1000) == 1.0
    assert nanochat.rate_share(1000, 1000) == pytest.approx(0.05 + 0.95 / 650)
    assert nanochat.momentum(1, 1000) == 0.85
    assert nanochat.momentum(201, 1000) == pytest.approx(0.91)
    assert nanochat.momentum(401, 1000) == pytest.approx(0.97 - 0.07 * 50 / 650)
    assert nanochat.momentum(1000, 1000) == pytest.approx(0.90, abs=2e-4)
    assert nanogpt.rate_share(20, 1000) == pytest.approx(20 / 21)
    assert nanogpt.rate_share(510, 1000) == pytest.approx(0.55)
    assert nanogpt.rate_share(1000, 1000) == pytest.approx(0.1)


def reference_update(
    weight: Tensor, gradients: list[Tensor], rate: float, momentum: float, decay: float
) -> Tensor:
    """Of one matrix in fp64, with its singular values by themselves: each round is a polynomial of them."""
    weight, moment, second = weight.double(), torch.zeros_like(weight).double(), None
    rows, columns = weight.shape
    for gradient in map(Tensor.double, gradients):
        moment = momentum * moment + (1 - momentum) * gradient
        x = (1 - momentum) * gradient + momentum * moment
        lengths = x.norm(dim=1, keepdim=True)
        x = x / lengths * (lengths.square().sum() / rows).sqrt()
        u, s, v = torch.linalg.svd(x / (1.01 * x.norm() + 1e-6), full_matrices=False)
        for a, b, c in normuon.POLAR_EXPRESS:
            s = a * s + b * s**3 + c * s**5
        x = u @ torch.diag(s * (min(rows, columns) / s.square().sum()).sqrt()) @ v
        squares = x.square().mean(dim=1 if rows >= columns else 0, keepdim=True)
        second = 0.1 * squares if second is None else 0.9 * second + 0.1 * squares
        scaled = x / second.sqrt()
        x = scaled * x.norm() / scaled.norm()
        step = rate * max(1.0, rows / columns) ** 0.5
        weight = weight - step * (x + decay * weight * (x * weight >= 0))
    return weight


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_normuon_updates_as_an_independent_computation_does(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(2)]
    before = [p.detach().clone() for p in parameters]
    gradients = [[torch.randn(shape, generator=generator) for _ in range(3)] for _ in parameters]
    muon = normuon.NorMuon(parameters, dtype=torch.float32, compiled=False)

    for number in range(3):
        for parameter, each in zip(parameters, gradients, strict=True):
            parameter.grad = each[number]
        muon.step(rate=0.05, momentum=0.9, weight_decay=0.3)

    for parameter, start, each in zip(parameters, before, gradients, strict=True):
        expected = reference_update(start, each, 0.05, 0.9, 0.3)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-3, atol=1e-4)


def test_a_matrix_without_a_gradient_of_its_own_stays_finite() -> None:
    """At the first step nothing reaches what lies behind projections that are zero."""
    parameter = nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.zeros(4, 6)

    normuon.NorMuon([parameter], dtype=torch.float32, compiled=False).step(
        rate=0.1, momentum=0.9, weight_decay=0.0
    )

    torch.testing.assert_close(parameter.detach(), torch.ones(4, 6))


def test_rates_of_adamw_follow_the_schedule_and_matrices_alone_decay() -> None:
    model = nn.Linear(2, 2)
    before = [p.detach().clone() for p in model.parameters()]
    update = adamw_update(
        model, rate=lambda number: 0.1 / number, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.5, clipping=1.0
    )
    for number in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 100.0)  # each component moves by the rate
        update(number)

    weight = (before[0] * (1 - 0.05) - 0.1) * (1 - 0.025) - 0.05
    torch.testing.assert_close(model.weight.detach(), weight)
    torch.testing.assert_close(model.bias.detach(), before[1] - 0.15)


def test_a_factor_holds_for_all_rates_of_llmkit_and_for_nothing_else() -> None:
    optimizer = Optimizer.model_validate(
        {
            "learning_rate": 0.01,
            "groups": [{"params": ["a"], "learning_rate": 0.5}, {"params": ["b"], "eps": 1.0}],
        }
    )

    changed = own.scaled(optimizer, 4.0)

    assert changed.learning_rate == 0.04
    assert [group.learning_rate for group in changed.groups] == [2.0, None]
    assert own.scaled(changed, 0.25) == optimizer


def test_settings_say_all_of_a_recipe() -> None:
    demo = SIZES["demo"]
    found: dict[str, Any] = {name: settings(name, demo) for name in NAMES}
    assert found["llama"]["model"]["intermediate_size"] == 512
    assert found["nanochat"]["shape"] == [4, 192, 3, 1]
    assert found["nanochat-mha"]["shape"] == [4, 192, 3, 3]
    assert found["llmkit"]["model"]["num_hidden_layers"] == 4
    assert settings("llmkit", SIZES["14m"])["model"]["hidden_size"] == 384
