"""The model against Hugging Face's GPT-2 and Llama, and against itself under other layouts of a batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llmkit.batch import IGNORE, Batch
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model, randomise

TOLERANCE = 1e-5


def relative(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||."""
    return float((ours - theirs).norm() / theirs.norm())


def hf_gpt2() -> GPT2LMHeadModel:
    shape = GPT2_STYLE
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.max_position_embeddings, n_embd=shape.hidden_size,
        n_layer=shape.num_hidden_layers, n_head=shape.num_attention_heads, n_inner=shape.intermediate_size,
        activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    return randomise(GPT2LMHeadModel(config).float())


def hf_llama() -> LlamaForCausalLM:
    shape = LLAMA_STYLE
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers, num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads, head_dim=shape.head_dim, rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, tie_word_embeddings=False,
        attention_bias=False, mlp_bias=False, attn_implementation="eager",
    )  # fmt: skip
    return randomise(LlamaForCausalLM(config).float())


def gpt2_name(name: str) -> tuple[str, bool]:
    """For one of our part names, GPT-2's name, and whether GPT-2 stores the transpose."""
    top = {"embedding": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f"}
    block = {
        "attention_norm": "ln_1", "mlp_norm": "ln_2", "attention.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj",
    }  # fmt: skip
    owner, _, kind = name.rpartition(".")
    if owner in top:
        return f"{top[owner]}.{kind}", False
    _, number, inner = owner.split(".", 2)
    return f"transformer.h.{number}.{block[inner]}.{kind}", kind == "weight" and "proj" in inner


def from_gpt2(theirs: dict[str, Tensor], name: str) -> Tensor:
    """The tensor of a GPT-2 state dict that our part `name` stands for."""
    for projection, third in (("q_proj", 0), ("k_proj", 1), ("v_proj", 2)):
        if projection in name:
            number, kind = name.split(".")[1], name.rpartition(".")[2]
            stacked = theirs[f"transformer.h.{number}.attn.c_attn.{kind}"]
            return stacked.chunk(3, dim=-1)[third].t()
    their_name, transposed = gpt2_name(name)
    return theirs[their_name].t() if transposed else theirs[their_name]


def from_llama(theirs: dict[str, Tensor], name: str) -> Tensor:
    """The tensor of a Llama state dict that our part `name` stands for."""
    for ours, other in (
        ("embedding.", "model.embed_tokens."), ("head.", "lm_head."), ("blocks.", "model.layers."),
        ("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm"),
        ("attention.", "self_attn."),
    ):  # fmt: skip
        name = name.replace(ours, other)
    return theirs["model.norm.weight" if name == "norm.weight" else name]


PAIRS = [
    pytest.param(GPT2_STYLE, hf_gpt2, from_gpt2, id="gpt2"),
    pytest.param(LLAMA_STYLE, hf_llama, from_llama, id="llama"),
]


@pytest.mark.parametrize("attention", ["sdpa", "blocks", "matmul"])
@pytest.mark.parametrize(("shape", "make", "translate"), PAIRS)
def test_loss_and_every_gradient_equal_hugging_face(shape, make, translate, attention):
    theirs = make()
    state = theirs.state_dict()
    ours = GPT(shape, Operators.of({"attention": attention}))
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parts in ours.parameter_slices().items():
            weights[name].zero_()
            for part in parts:
                weights[name][part.start : part.stop] = translate(state, part.name)

    tokens = torch.randint(shape.vocab_size, (3, 38), generator=torch.Generator().manual_seed(1))
    labels = tokens[:, 1:].clone()
    labels[0, 5:9] = IGNORE
    loss = ours(Batch(tokens[:, :-1], labels))
    (loss.nats.sum() / loss.targets.sum()).backward()
    output = theirs(input_ids=tokens[:, :-1], labels=None).logits
    reference = torch.nn.functional.cross_entropy(output.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    reference.backward()

    assert loss.targets.tolist() == [33, 37, 37]
    mean = loss.nats.sum().item() / loss.targets.sum().item()
    assert mean == pytest.approx(reference.item(), rel=1e-6)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parts in ours.parameter_slices().items():
        for part in parts:
            found, wanted = weights[name].grad[part.start : part.stop], translate(gradients, part.name)
            if part.name.endswith("k_proj.bias"):  # softmax ignores it: its true gradient is 0
                assert max(found.norm(), wanted.norm()) < 1e-6
                continue
            assert relative(found, wanted) <= TOLERANCE, part.name


@pytest.mark.parametrize("attention", ["sdpa", "blocks", "matmul"])
@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
def test_document_masks_equal_one_document_at_a_time(shape, attention):
    model = random_model(shape, attention)
    tokens = torch.randint(shape.vocab_size, (1, 31), generator=torch.Generator().manual_seed(2))
    labels = torch.randint(shape.vocab_size, (1, 31), generator=torch.Generator().manual_seed(3))
    cuts = [0, 1, 12, 13, 31]
    documents = torch.zeros(1, 31, dtype=torch.int32)
    for number, (low, high) in enumerate(pairwise(cuts)):
        documents[:, low:high] = number

    packed = model(Batch(tokens, labels, documents)).nats.sum()
    packed.backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone = sum(
        model(Batch(tokens[:, low:high], labels[:, low:high])).nats.sum() for low, high in pairwise(cuts)
    )
    alone.backward()

    assert packed.item() == pytest.approx(alone.item(), rel=1e-6)
    for gradient, (name, parameter) in zip(together, model.named_parameters(), strict=True):
        assert relative(gradient, parameter.grad) <= TOLERANCE, name


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE], ids=["gpt2", "llama"])
def test_vocabulary_padding_changes_neither_loss_nor_gradients(shape):
    padded = random_model(shape)
    bare = random_model(replace(shape, padded_vocab_size=shape.vocab_size))
    assert padded.embedding.weight.shape[0] > bare.embedding.weight.shape[0]
    batch = Batch(*torch.randint(shape.vocab_size, (2, 2, 17)).unbind())
    for model in (padded, bare):
        model(batch).nats.sum().backward()
    torch.testing.assert_close(padded(batch).nats, bare(batch).nats, rtol=1e-6, atol=0)
    for (name, a), b in zip(padded.named_parameters(), bare.parameters(), strict=True):
        rows = slice(0, b.shape[0])
        assert relative(a.grad[rows], b.grad) <= TOLERANCE, name
        assert not a.grad[b.shape[0] :].any(), name


def test_sliding_window_hides_what_lies_further_back():
    model = random_model(replace(LLAMA_STYLE, sliding_window=4, num_hidden_layers=1))
    tokens = torch.randint(LLAMA_STYLE.vocab_size, (1, 12))
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % LLAMA_STYLE.vocab_size
    with torch.no_grad():
        difference = (model.hidden(tokens) - model.hidden(changed)).abs().amax(-1)[0]
    assert difference[:3].max() == 0 and difference[7:].max() == 0
    assert difference[3:7].min() > 0


@pytest.mark.parametrize("attention", ["sdpa", "blocks", "matmul"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("shape", [GPT2_STYLE, replace(LLAMA_STYLE, qk_norm=True)], ids=["gpt2", "modern"])
def test_cached_logits_equal_uncached_ones(shape, window, attention):
    from llmkit.model.cache import KeyValueCache

    shape = replace(shape, sliding_window=window)
    model = random_model(shape, attention).eval()
    tokens = torch.randint(shape.vocab_size, (2, 20))
    cache = KeyValueCache(shape, model.embedding.weight)
    with torch.no_grad():
        for low, high in ((0, 7), (7, 8), (8, 13), (13, 20)):
            cached = model.logits(tokens[:, low:high], cache.rows([high - low] * 2))
            torch.testing.assert_close(cached, model.logits(tokens[:, :high]), rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only():
    model = random_model(replace(GPT2_STYLE, hidden_dropout=0.3, attention_dropout=0.3))
    batch = Batch(*torch.randint(GPT2_STYLE.vocab_size, (2, 2, 9)).unbind())
    with torch.no_grad():
        assert model(batch).nats.sum() != model(batch).nats.sum()
        model.eval()
        torch.testing.assert_close(model(batch).nats, model(batch).nats, rtol=0, atol=0)


def test_parts_name_every_element_once():
    for shape in (GPT2_STYLE, LLAMA_STYLE):
        model = GPT(shape)
        weights, seen = dict(model.named_parameters()), set()
        for name, parts in model.parameter_slices().items():
            rows = [row for part in parts for row in range(part.start, part.stop)]
            padding = (
                shape.padded_vocab_size - shape.vocab_size
                if name in ("embedding.weight", "head.weight")
                else 0
            )
            assert rows == list(range(weights[name].shape[0] - padding)), name
            seen |= {part.name for part in parts}
        total = sum(part.stop - part.start for parts in model.parameter_slices().values() for part in parts)
        assert len(seen) == sum(len(parts) for parts in model.parameter_slices().values()) and total > 0
        stored = sum(
            (part.stop - part.start) * (weights[name].numel() // weights[name].shape[0])
            for name, parts in model.parameter_slices().items()
            for part in parts
        )
        assert stored == shape.num_parameters
