"""The numbers of `llmkit inspect` against independent computations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llmkit.batch import Batch
from llmkit.inspect.readings import read_text
from llmkit.kernels.operators import replace_functions
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

SHAPES = {
    "gpt2": GPT2_STYLE,
    "llama": replace(LLAMA_STYLE, qk_norm=True),
    "window and soft-caps": replace(
        LLAMA_STYLE,
        num_hidden_layers=3,
        sliding_window=5,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "norms behind, a window by layer": replace(
        LLAMA_STYLE, norm_placement="post", qk_norm="full", sliding_window=5, num_hidden_layers=3,
        layer_types=("sliding_attention", "full_attention"), partial_rotary_factor=0.6,
    ),
    "what looks back": replace(LLAMA_STYLE, key_shift=True, bigram_embedding=50, embedding_multiplier=3.0),
}
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58, 9, 79]


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def model(request):
    """In float64: differences are those of the arithmetic, not of rounding."""
    return random_model(request.param).double().eval().requires_grad_(False)


def logits_of(model, tokens=TOKENS) -> torch.Tensor:
    return torch.stack([model.logits(torch.tensor([tokens[: n + 1]]))[0] for n in range(len(tokens))])


def test_losses_are_the_cross_entropy_of_what_follows(model):
    found = read_text(model, TOKENS)
    logits = logits_of(model)
    targets = torch.tensor([*TOKENS[1:], int(logits[-1].argmax())])
    assert found.targets.tolist() == targets.tolist()
    assert found.tokens.tolist() == TOKENS
    torch.testing.assert_close(found.losses, F.cross_entropy(logits, targets, reduction="none"))
    batch = Batch(torch.tensor([TOKENS[:-1]]), torch.tensor([TOKENS[1:]]))
    torch.testing.assert_close(found.losses[:-1].sum()[None], model(batch).nats)


def test_the_last_depth_of_the_lens_is_what_the_model_says(model):
    lens = read_text(model, TOKENS, top=4).lens
    depths = model.shape.num_hidden_layers + 1
    assert lens.candidates.shape == (depths, len(TOKENS), 4)
    probabilities = logits_of(model).softmax(-1)
    likeliest = probabilities.topk(4)
    assert lens.candidates[-1].tolist() == likeliest.indices.tolist()
    torch.testing.assert_close(lens.probabilities[-1], likeliest.values)
    targets = torch.tensor(TOKENS[1:])
    wanted = probabilities[:-1].gather(-1, targets[:, None])
    torch.testing.assert_close(lens.target_probability[-1, :-1], wanted[:, 0])
    assert lens.target_rank[-1, :-1].tolist() == (probabilities[:-1] > wanted).sum(-1).tolist()


def test_a_depth_of_the_lens_is_a_model_that_ends_there():
    shape = replace(LLAMA_STYLE, num_hidden_layers=3)
    model = random_model(shape).eval().requires_grad_(False)
    lens = read_text(model, TOKENS).lens
    for depth in range(4):
        shorter = random_model(shape).eval()
        shorter.blocks = shorter.blocks[:depth]
        torch.testing.assert_close(
            lens.probabilities[depth], logits_of(shorter).softmax(-1).topk(5).values, msg=str(depth)
        )


def test_attention_sums_to_one_sees_no_future_and_keeps_to_the_window(model):
    attention = read_text(model, TOKENS).attention
    shape, seq = model.shape, len(TOKENS)
    assert attention.shape == (shape.num_hidden_layers, shape.num_attention_heads, seq, seq)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    back = torch.arange(seq)[:, None] - torch.arange(seq)
    for layer, weights in enumerate(attention):
        hidden = (back < 0) | (back >= (shape.window(layer) or seq))
        assert weights[:, hidden].abs().max() == 0 and weights[:, ~hidden].min() > 0


def test_the_recorded_weights_give_what_the_blocks_compute(model):
    """Values mixed by the recorded weights are what the model's own attention gives to its projection."""
    seen = []
    for block in model.blocks:
        block.attention.o_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    values = []
    original = model.operators.attention

    def recorded(q, k, v, **rules):
        values.append(v)
        return original(q, k, v, **rules)

    own = model.operators
    replace_functions(model, own, replace(own, attention=recorded))
    model.hidden(torch.tensor([TOKENS]))
    replace_functions(model, model.operators, own)
    mixed = list(seen)
    attention = read_text(model, TOKENS).attention.double()
    groups = model.shape.num_attention_heads // model.shape.num_key_value_heads
    for layer, v in enumerate(values):
        again = torch.einsum("hqk,khd->qhd", attention[layer], v[0].repeat_interleave(groups, 1))
        torch.testing.assert_close(again.flatten(1), mixed[layer][0], rtol=1e-5, atol=1e-6)


def test_attributions_are_the_change_of_the_log_probability_as_a_tokens_vector_grows(model):
    """By central differences: the derivative of log p of a target by a factor of one token's vector, at 1."""
    found = read_text(model, TOKENS)
    width, seq = 1e-2, len(TOKENS)  # logits are fp32: much smaller differences would be their rounding

    def log_probabilities(place: int, factor: float) -> torch.Tensor:
        factors = torch.ones(seq, 1, dtype=torch.float64)
        factors[place] = factor
        handle = model.embedding.register_forward_hook(lambda module, inputs, vectors: vectors * factors)
        try:
            logits = model.head.logits(model.hidden(torch.tensor([TOKENS])))[0]
        finally:
            handle.remove()
        return logits.double().log_softmax(-1).gather(-1, found.targets[:, None])[:, 0]

    wanted = torch.stack(
        [
            (log_probabilities(place, 1 + width) - log_probabilities(place, 1 - width)) / (2 * width)
            for place in range(seq)
        ],
        -1,
    )
    torch.testing.assert_close(found.attributions.double(), wanted, rtol=2e-2, atol=2e-3)
    later = torch.ones(seq, seq).triu(1).bool()
    assert found.attributions[later].abs().max() == 0


def test_attributions_add_up_where_the_size_of_vectors_has_no_effect():
    """Blocks that add nothing and a norm that does not act on the size: log p depends on its own token alone,
    and by Euler's theorem on no size, so the parts add up to 0."""
    model = random_model(replace(GPT2_STYLE, position_embedding="rope", norm_eps=1e-12)).eval()
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attention.o_proj, block.mlp.down_proj):
                layer.weight.zero_()
                layer.bias.zero_()
    found = read_text(model.requires_grad_(False), TOKENS).attributions
    assert found.abs().max() < 1e-4


def test_the_model_is_as_before():
    model = random_model(LLAMA_STYLE).eval().requires_grad_(False)
    before, operators = logits_of(model), model.operators
    read_text(model, TOKENS)
    assert torch.equal(logits_of(model), before)
    assert all(module.operators is operators for module in model.modules() if hasattr(module, "operators"))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
