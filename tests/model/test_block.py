"""Every setting of the model against plain formulas in float64, and with the cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.batch import Batch
from llmkit.config.model_section import RopeScaling
from llmkit.kernels.operators import Operators
from llmkit.model.cache import KeyValueCache
from llmkit.model.gpt import GPT
from tests.model.plain_gpt import full_tensors, logits
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model, randomise

EVERYTHING = replace(
    LLAMA_STYLE, num_hidden_layers=3, mlp="relu2", norm_weight=False, qk_norm=True, embedding_norm=True,
    value_embeddings=True, residual_scalars=True, embedding_multiplier=1.7, attention_multiplier=0.41,
    key_shift=0.4, bigram_embedding=37, residual_multiplier=0.6, logits_scaling=1.3,
    final_logit_softcapping=4.0,
)  # fmt: skip
YARN = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=12, beta_fast=3.0)
OLMO = replace(
    LLAMA_STYLE, norm_placement="post", qk_norm="full", rope_scaling=YARN, partial_rotary_factor=0.6,
    attention_multiplier=0.5, mlp="geglu", attention_bias=True, attention_output_bias=False,
)  # fmt: skip
GEMMA = replace(
    LLAMA_STYLE, num_hidden_layers=3, norm_placement="both", norm_weight_offset=1.0, qk_norm=True,
    mlp="geglu", sliding_window=6, layer_types=("sliding_attention", "full_attention"),
    sliding_rope_theta=30.0, rope_scaling=RopeScaling(rope_type="linear", factor=8.0),
    attn_logit_softcapping=3.0, attention_multiplier=0.4, tie_word_embeddings=True, embedding_norm=True,
)  # fmt: skip
SHAPES = {
    "gpt2": GPT2_STYLE,
    "llama": LLAMA_STYLE,
    "everything": EVERYTHING,
    "olmo": OLMO,
    "olmo without weights of norms": replace(OLMO, norm_weight=False, attention_output_bias=True),
    "gemma": GEMMA,
    "layer norm behind": replace(GPT2_STYLE, norm_placement="both", norm_weight_offset=0.5),
    "layer norm without parameters": replace(GPT2_STYLE, norm_weight=False, embedding_norm=True, mlp="relu2"),
    "value embeddings and biases": replace(
        GPT2_STYLE, value_embeddings=True, residual_scalars=True, key_shift=1.0
    ),
    "pairs of tokens alone": replace(GPT2_STYLE, bigram_embedding=50),
    "multipliers with learned positions": replace(
        GPT2_STYLE, embedding_multiplier=3.0, attention_multiplier=0.1, residual_multiplier=0.3
    ),
}
COUNT = 23


def tokens_of(shape, rows=2):
    return torch.randint(shape.vocab_size, (rows, COUNT + 1), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_every_gradient_equal_the_formulas(shape, recompute):
    model = randomise(GPT(shape, activation_checkpointing=recompute))
    full, tokens = full_tensors(model), tokens_of(shape)
    weights = dict(model.named_parameters())
    loss = model(Batch(tokens[:, :-1], tokens[:, 1:])).nats.sum()
    loss.backward()
    wanted = torch.nn.functional.cross_entropy(
        logits(shape, full, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    )
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert list(full) == list(shape.parameters())
    size = torch.stack([each.grad.norm() for each in full.values()]).norm()
    for name, parts in model.parameter_slices().items():
        for part in parts:
            found, exact = weights[name].grad[part.start : part.stop].double(), full[part.name].grad
            if part.name.endswith("k_proj.bias") and not shape.key_shift:
                continue  # softmax ignores it: its true gradient is 0
            # What is small is the sum of large terms that cancel, and has their rounding.
            assert (found - exact).norm() <= 1e-5 * max(exact.norm(), 0.01 * size), part.name
            assert exact.norm() > 0, part.name


@pytest.mark.parametrize("attention", ["sdpa", "blocks", "matmul"])
@pytest.mark.parametrize("name", ["everything", "olmo", "gemma", "multipliers with learned positions"])
def test_cached_logits_equal_uncached_ones(name, attention):
    shape = SHAPES[name]
    model = randomise(GPT(shape, Operators.of({"attention": attention}))).eval()
    tokens = tokens_of(shape)
    cache = KeyValueCache(shape, model.embedding.weight)
    with torch.no_grad():
        for low, high in ((0, 7), (7, 8), (8, 13), (13, COUNT)):
            cached = model.logits(tokens[:, low:high], cache.rows([high - low] * len(tokens)))
            torch.testing.assert_close(cached, model.logits(tokens[:, :high]), rtol=1e-4, atol=1e-5)
    wanted = logits(shape, full_tensors(model), tokens[:, :COUNT])[:, -1]
    torch.testing.assert_close(cached.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [EVERYTHING, OLMO, GEMMA], ids=["everything", "olmo", "gemma"])
def test_documents_of_one_row_do_not_see_each_other(shape):
    model = random_model(shape)
    tokens, labels = tokens_of(shape, 1)[:, :-1], tokens_of(shape, 1)[:, 1:]
    cut = 9
    documents = (torch.arange(COUNT) >= cut).int()[None]
    packed = model(Batch(tokens, labels, documents)).nats.sum()
    alone = [
        model(Batch(tokens[:, part], labels[:, part])).nats.sum() for part in (slice(cut), slice(cut, None))
    ]
    assert packed.item() == pytest.approx(sum(alone).item(), rel=1e-6)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(EVERYTHING, id="everything"),
        pytest.param(GEMMA, id="gemma", marks=pytest.mark.exhaustive),
    ],
)
def test_compiled_it_is_the_same(shape):
    model = random_model(shape)
    batch = Batch(tokens_of(shape)[:, :-1], tokens_of(shape)[:, 1:])
    found = []
    for compiled in (False, True):
        if compiled:
            model.compile_parts(pytest.fail, backend="aot_eager")
        model.zero_grad()
        loss = model(batch).nats.sum()
        loss.backward()
        found.append([loss.detach(), *(each.grad.clone() for each in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=3e-5)


def test_blocks_that_are_alike_are_compiled_once():
    torch._dynamo.reset()
    graphs = []
    model = random_model(replace(EVERYTHING, num_hidden_layers=4))
    model.compile_parts(pytest.fail, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    tokens = tokens_of(EVERYTHING)
    model(Batch(tokens[:, :-1], tokens[:, 1:])).nats.sum().backward()
    assert len(graphs) == 4, "of norms, of blocks with value embeddings and without, of the head"


def test_muon_updates_neither_value_embeddings_nor_their_gates():
    hidden = GPT(EVERYTHING).hidden_matrices()
    assert {name.split(".", 2)[2] for name in hidden} == {
        "attention.qkv.weight", "attention.o_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
    }  # fmt: skip
