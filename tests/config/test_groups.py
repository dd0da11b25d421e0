"""Which parameters are updated alike, and which groups are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.config.groups import assign, describe_groups
from llmkit.config.load import load
from llmkit.config.optimizer_section import Optimizer
from llmkit.errors import UserError
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

TENSORS = replace(LLAMA_STYLE, num_hidden_layers=1).tensors
MATRICES = [f"blocks.0.{name}_proj.weight" for name in (
    "attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down",
)]  # fmt: skip
NORMS = ["blocks.0.attention_norm.weight", "blocks.0.mlp_norm.weight", "norm.weight"]


def groups(**settings) -> list[tuple]:
    """(optimizer, rate, decay, names) of each group."""
    config = Optimizer.model_validate({"learning_rate": 0.5, "weight_decay": 0.25, **settings})
    return [(g.optimizer, g.learning_rate, g.weight_decay, list(g.names)) for g in assign(TENSORS, config)]


def test_without_entries_matrices_decay_and_hidden_ones_are_muons():
    vocabulary = ["embedding.weight", "head.weight"]
    assert groups(name="muon") == [
        ("adamw", 0.5, 0.25, vocabulary), ("adamw", 0.5, 0.0, NORMS), ("muon", 0.5, 0.25, MATRICES),
    ]  # fmt: skip
    matrices = [vocabulary[0], *MATRICES, vocabulary[1]]
    assert groups() == [("adamw", 0.5, 0.25, matrices), ("adamw", 0.5, 0.0, NORMS)]


def test_an_entry_replaces_the_values_that_it_gives():
    entries = [
        {"params": ["*norm.weight"], "weight_decay": 0.125},
        {"params": ["embedding.*", "head.weight"], "learning_rate": 2.0, "betas": [0.8, 0.9], "eps": 1e-10},
        {"params": ["blocks.*.attention.*"], "momentum": 0.5, "learning_rate": 0.75},
        {"params": ["blocks.*.mlp.down_proj.weight"], "name": "adamw"},
    ]
    assert groups(name="muon", groups=entries) == [
        ("adamw", 0.5, 0.125, NORMS),
        ("adamw", 2.0, 0.25, ["embedding.weight", "head.weight"]),
        ("adamw", 0.5, 0.25, MATRICES[6:]),
        ("muon", 0.5, 0.25, MATRICES[4:6]),
        ("muon", 0.75, 0.25, MATRICES[:4]),
    ]
    config = Optimizer.model_validate({"name": "muon", "groups": entries})
    _, vocabulary, _, rest, attention = assign(TENSORS, config)
    assert (vocabulary.betas, vocabulary.eps, vocabulary.momentum) == ((0.8, 0.9), 1e-10, 0.95)
    assert (rest.momentum, attention.momentum, attention.betas) == (0.95, 0.5, (0.9, 0.95))


def test_a_group_of_all_kinds_keeps_the_rules_for_each():
    everything = [{"params": ["*"], "learning_rate": 1.5}]
    assert groups(name="muon", groups=everything) == [
        (name, 1.5, decay, names) for name, _, decay, names in groups(name="muon")
    ]
    assert groups(groups=[{"params": MATRICES, "name": "muon"}])[-1] == ("muon", 0.5, 0.25, MATRICES)


Q, K = "blocks.0.attention.q_proj.weight", "blocks.1.attention.k_proj.weight"
MISTAKES = [
    # (entries, what the message says)
    (
        "[{params: [embeddings.weight]}]",
        'optimizer.groups.0.params ["embeddings.weight"] (command line): no parameter matches '
        '"embeddings.weight"\n      did you mean embedding.weight?',
    ),
    ("[{params: [x, 'blocks.*']}]", "the parameters are embedding.weight, blocks.*.attention_norm.weight,"),
    ("[{params: ['blocks.7.*']}]", 'no parameter matches "blocks.7.*"'),
    (
        "[{params: ['*norm.weight']}, {params: [norm.weight, embedding.weight]}]",
        'optimizer.groups.0.params ["*norm.weight"] (command line) and optimizer.groups.1.params '
        '["norm.weight", "embedding.weight"] (command line) both match norm.weight',
    ),
    (
        "[{params: ['*'], name: muon}]",
        'optimizer.groups.0.name "muon" (command line) cannot update embedding.weight, '
        "blocks.0.attention_norm.weight, blocks.0.mlp_norm.weight and 3 more",
    ),
    (
        f"[{{params: ['{Q}', '{K}']}}]",
        f"matches {Q}, but not blocks.0.attention.k_proj.weight and blocks.0.attention.v_proj.weight",
    ),
    (
        "[{params: ['*.gate_proj.weight'], learning_rate: 1}, {params: ['*.up_proj.weight']}]",
        "matches blocks.0.mlp.up_proj.weight, but not blocks.0.mlp.gate_proj.weight",
    ),
    (
        "[{params: [norm.weight], betas: [0.9, 1.0]}]",
        "each a number of at least 0 and below 1, or null; it is [0.9, 1.0]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "what"), MISTAKES)
def test_what_is_refused(entries, what, refused_for_one):
    refused_for_one([f"optimizer.groups={entries}"], what)


def test_all_mistakes_are_named_at_once_with_their_lines(write):
    text = (
        "optimizer:\n  groups:\n    - params: [head.weight]\n    - params: ['*_norm.*']\n      eps: 0.1\n"
        "    - params: ['blocks.*']\n      name: muon\ntrain: {max_steps: 3}\n"
        "data: {sources: [{type: stdlib}]}\nmodel: {hidden_size: 64, num_attention_heads: 4}\n"
    )
    with pytest.raises(UserError) as refusal:
        load(write(text))
    message = str(refusal.value)
    assert "3 mistakes" in message
    assert 'c.yaml:3: optimizer.groups.0.params ["head.weight"] (c.yaml:3): no parameter' in message
    assert (
        "c.yaml:4: optimizer.groups.1.params" in message and "both match blocks.0.attention_norm" in message
    )
    assert "c.yaml:7: optimizer.groups.2.name" in message


def test_a_model_of_impossible_sizes_is_not_asked_for_its_parameters(refused_for_one):
    refused_for_one(
        ["model.num_attention_heads=6", "optimizer.groups=[{params: [x]}]"], "model.hidden_size 64"
    )


def test_a_group_is_described_by_what_it_has():
    config = Optimizer.model_validate(
        {"name": "muon", "groups": [{"params": ["*norm*"], "learning_rate": 0.125, "weight_decay": 0.0}]}
    )
    described = describe_groups(config, GPT2_STYLE.tensors)
    assert sum(group["elements"] for group in described) == GPT2_STYLE.num_parameters
    norms = next(group for group in described if group["learning_rate"] == 0.125)
    assert norms == {
        "parameters": [
            "blocks.*.attention_norm.weight", "blocks.*.attention_norm.bias", "blocks.*.mlp_norm.weight",
            "blocks.*.mlp_norm.bias", "norm.weight", "norm.bias",
        ],
        "elements": 10 * 48, "optimizer": "adamw", "learning_rate": 0.125, "betas": [0.9, 0.95], "eps": 1e-8,
        "weight_decay": 0.0,
    }  # fmt: skip
    assert described[-1]["optimizer"] == "muon" and described[-1]["momentum"] == 0.95


def test_blocks_are_named_where_a_group_has_not_all_of_them():
    config = Optimizer.model_validate({"groups": [{"params": ["blocks.0.*.down_proj.*", "*.o_proj.*"]}]})
    tensors = replace(LLAMA_STYLE, num_hidden_layers=2).tensors
    rest, norms, group = describe_groups(config, tensors)
    assert group["parameters"] == ["blocks.*.attention.o_proj.weight", "blocks.0.mlp.down_proj.weight"]
    assert rest["parameters"][-2:] == ["blocks.1.mlp.down_proj.weight", "head.weight"]
    assert "blocks.*.mlp.up_proj.weight" in rest["parameters"] and "norm.weight" in norms["parameters"]


def test_a_registered_optimizer_is_shown_with_all_that_it_is_given():
    config = Optimizer.model_validate({"groups": [{"params": ["norm.weight"], "momentum": 0.5}]})
    described = describe_groups(config.model_copy(update={"name": "lion"}), TENSORS)
    assert {each["optimizer"] for each in described} == {"lion"}
    assert [each["momentum"] for each in described if each["parameters"] == ["norm.weight"]] == [0.5]
    assert all(each["betas"] == [0.9, 0.95] and each["eps"] == 1e-8 for each in described)
