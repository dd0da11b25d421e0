"""Low-rank adapters against plain PyTorch in float64. Ranks: the cases `ADAPTERS` of tests/parity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llmkit.batch import Batch
from llmkit.config.lora_section import Lora
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights
from llmkit.model.lora import add_adapters
from llmkit.parallel.mesh import Mesh
from llmkit.parity.compare import relative_error
from tests.examples.project import forgotten
from tests.model.plain_gpt import full_tensors, logits
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, randomise

LORA = Lora(rank=3, alpha=7.0)
SCALE = LORA.alpha / LORA.rank
SOME = replace(LLAMA_STYLE, attention_bias=True), ["q_proj", "v_proj", "blocks.1.mlp.down_proj"]


def adapted(shape: ModelShape, lora: Lora = LORA) -> GPT:
    model = GPT(shape, seed=None)
    add_adapters(model, lora)
    model.has_weights = True
    return randomise(model)


def batch_of(shape: ModelShape) -> Batch:
    tokens = torch.randint(shape.vocab_size, (2, 12), generator=torch.Generator().manual_seed(3))
    return Batch(tokens[:, :-1], tokens[:, 1:].clone())


def check_formula(model: GPT, shape: ModelShape, tolerance: float = 1e-5) -> None:
    """Compares loss and gradients with float64, with each adapter's product added to its layer's weight."""
    batch = batch_of(shape)
    loss = model(batch).objective
    loss.backward()
    full = full_tensors(model)
    merged = dict(full)
    for name in full:
        if name.endswith(".lora_A"):
            layer = name.removesuffix(".lora_A")
            change = full[f"{layer}.lora_B"] @ full[name]
            merged[f"{layer}.weight"] = full[f"{layer}.weight"] + SCALE * change
    scores, labels = logits(shape, merged, batch.tokens).flatten(0, 1), batch.labels.flatten()
    wanted = F.cross_entropy(scores, labels, reduction="sum")
    wanted.backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0.0)
    weights, seen = dict(model.named_parameters()), 0
    for stored, parts in model.parameter_slices().items():
        gradient = weights[stored].grad
        assert (gradient is not None) is (".lora_" in parts[0].name)
        for part in parts if gradient is not None else ():
            seen += 1
            assert relative_error(gradient[part.start : part.stop].double(), full[part.name].grad) < tolerance
    assert seen == 2 * sum(name.endswith(".lora_A") for name in full) > 0


@pytest.mark.parametrize(
    ("shape", "targets"), [(GPT2_STYLE, ["*_proj"]), (LLAMA_STYLE, ["*_proj"]), SOME], ids=str
)
def test_loss_and_gradients_are_those_of_the_formula(shape, targets):
    model = adapted(shape, LORA.model_copy(update={"targets": targets}))
    check_formula(model, shape)


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE])
def test_beside_a_base_in_few_bits_they_are_those_of_the_rounded_base(shape, form):
    if form == "nf4":
        pytest.importorskip("bitsandbytes")
    model = GPT(shape, Operators.of({"linear": form}), seed=None)
    add_adapters(model, LORA)
    randomise(model)
    draw = torch.Generator().manual_seed(1)
    for weight, _ in model.quantised_weights().values():
        weight.write(0, 0.2 * torch.randn(weight.shape, generator=draw))
    model.has_weights = True
    check_formula(model, shape, 5e-5)  # in some of these models attention is nearly saturated


def test_at_the_start_the_adapters_add_nothing_and_their_a_is_as_peft_draws_it():
    plain, model = GPT(LLAMA_STYLE, seed=5), GPT(LLAMA_STYLE, seed=None)
    add_adapters(model, LORA)
    source = InitialWeights(model, 5)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parts in model.parameter_slices().items():
            for part in parts:
                weights[name][part.start : part.stop] = source.read(part.name, "master", part.box)
    model.has_weights = True
    batch = batch_of(LLAMA_STYLE)
    torch.testing.assert_close(model(batch).nats, plain(batch).nats, rtol=1e-6, atol=0)
    drawn = torch.nn.Linear(200, 300).weight  # uniform, as PyTorch's and PEFT's
    name = "blocks.0.mlp.down_proj.lora_A"
    mine = source.read(name, "master")
    ratio = mine.std() * mine.shape[1] ** 0.5 / (drawn.detach().std() * 200**0.5)
    assert float(ratio) == pytest.approx(1.0, abs=0.15)


def test_dropout_is_on_the_input_of_the_adapters_alone():
    model = adapted(LLAMA_STYLE, Lora(rank=3, alpha=7.0, input_dropout=0.5))
    batch = batch_of(LLAMA_STYLE)
    assert model.has_dropout and all(block.random for block in model.blocks)
    first, second = (model(batch).nats.detach() for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(batch).nats, model(batch).nats)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("lora_B"):
                weight.zero_()
    evaluated = model(batch).nats
    assert torch.equal(model.train()(batch).nats, evaluated)


def test_a_registered_model_of_our_layers_has_adapters_too():
    with forgotten("tests.engine.custom_models"):
        from tests.engine.custom_models import Sharded, make, train

        lora = {"init_from": "weights", "lora": {"rank": 2, "targets": ["up", "blocks.1.out"]}}
        engine = make(Mesh(), {"type": "sharded-test-model"}, {"name": "muon"}, train=lora)
        assert isinstance(engine.model, Sharded) and engine.model.adapted
        before = {name: weight.clone() for name, weight in engine.model.named_parameters()}
        losses = train(engine, Mesh())
        trained = {piece.name for piece in engine.read_pieces()}
        layers = ["blocks.0.into.up", "blocks.1.into.up", "blocks.1.out"]  # as the module's parent names them
        assert trained == {
            f"{layer.replace('.into', '')}.{part}" for layer in layers for part in ("lora_A", "lora_B")
        }
        changed = {n for n, weight in engine.model.named_parameters() if not torch.equal(weight, before[n])}
        assert len(set(losses[::3])) > 1
        assert len(changed) == 6 and all(".adapter." in name for name in changed)


def test_a_pattern_without_a_layer_is_refused():
    with pytest.raises(UserError, match='no linear layer of GPT matches "head"'):
        add_adapters(GPT(LLAMA_STYLE), Lora(rank=1, targets=["q_proj", "head"]))
