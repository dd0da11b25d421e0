"""Every mistake that a user can make about one key, and the message that mends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Refused = Callable[..., str]

UNKNOWN_KEYS = [
    # (text to replace, its replacement, line, what the message says)
    ("name: demo", "nmae: demo", 2, "run.nmae is an unknown key; did you mean run.name?"),
    (
        "  hidden_size: 64",
        "  hiden_size: 64",
        5,
        "model.hiden_size is an unknown key; did you mean model.hidden_size?",
    ),
    ("hidden_size", "n_embd", 5, "model.n_embd is an unknown key; did you mean model.hidden_size?"),
    ("num_hidden_layers", "num_layers", 6, "did you mean model.num_hidden_layers?"),
    ("num_hidden_layers", "n_layer", 6, "did you mean model.num_hidden_layers?"),
    ("num_attention_heads", "num_heads", 7, "did you mean model.num_attention_heads?"),
    ("num_key_value_heads", "num_kv_heads", 8, "did you mean model.num_key_value_heads?"),
    ("tokenizer:", "tokeniser:", 10, "data.tokeniser is an unknown key; did you mean data.tokenizer?"),
    ("    vocab_size: 512", "    vocabsize: 512", 12, "did you mean data.tokenizer.vocab_size?"),
    (
        "weight: 2",
        "wieght: 2",
        17,
        "data.sources.1.wieght is an unknown key; did you mean data.sources.1.weight?",
    ),
    ("sequence_length", "seq_len", 18, "data.seq_len is an unknown key; did you mean data.sequence_length?"),
    ("sequence_length", "block_size", 18, "did you mean data.sequence_length?"),
    ("max_steps", "max_step", 20, "train.max_step is an unknown key; did you mean train.max_steps?"),
    ("max_steps", "maxsteps", 20, "did you mean train.max_steps?"),
    ("global_batch_size", "batch_size", 21, "did you mean train.global_batch_size?"),
    ("micro_batch_size", "micro-batch-size", 22, "did you mean train.micro_batch_size?"),
    (
        "micro_batch_size",
        "learning_rate",
        22,
        "train.learning_rate is an unknown key; did you mean optimizer.learning_rate?",
    ),
    ("micro_batch_size", "warmup_steps", 22, "did you mean schedule.warmup_steps?"),
    ("micro_batch_size", "grad_clip", 22, "did you mean train.gradient_clipping?"),
    ("optimizer:", "optimiser:", 23, "optimiser is an unknown key; did you mean optimizer?"),
    ("learning_rate", "lr", 24, "optimizer.lr is an unknown key; did you mean optimizer.learning_rate?"),
    ("betas: [0.9, 0.99]", "beta2: 0.99", 25, "did you mean optimizer.betas?"),
    ("schedule:", "scheduler:", 26, "scheduler is an unknown key; did you mean schedule?"),
    ("warmup_steps", "warmup", 28, "did you mean schedule.warmup_steps?"),
    ("evaluate:", "evaluation:", 29, "evaluation is an unknown key; did you mean evaluate?"),
    ("every_steps", "every_step", 30, "did you mean evaluate.every_steps?"),
    (
        "mode: disabled",
        "mdoe: disabled",
        33,
        "monitor.wandb.mdoe is an unknown key; did you mean monitor.wandb.mode?",
    ),
    ("evaluate:", "learning_rate: 1e-3\nevaluate:", 29, "did you mean optimizer.learning_rate?"),
    ("evaluate:", "wandb: {mode: disabled}\nevaluate:", 29, "did you mean monitor.wandb?"),
    ("evaluate:", "zero: 3\nevaluate:", 29, "zero is an unknown key"),
    ("evaluate:", "train.max_minutes: 3\nevaluate:", 29, "write `max_minutes:` below `train:`"),
    ("evaluate:", '"a\\nb\\e[1m$(id)": 3\nevaluate:', 29, r"a\nb\x1b[1m$(id) is an unknown key"),
]

WRONG_VALUES = [
    ("name: demo", "name: ../up", 2, "run.name must be text that matches ^[A-Za-z0-9]"),
    ("name: demo", 'name: "a\\0b"', 2, r'it is the text "a\x00b"'),
    ("name: demo", 'name: "a\\nb"', 2, r'it is the text "a\nb"'),
    ("name: demo", 'name: "demo\\n"', 2, r'it is the text "demo\n"'),
    ("name: demo", "name: $(rm -rf .)", 2, 'it is the text "$(rm -rf .)"'),
    ("name: demo", "name: 'it''s'", 2, '''it is the text "it's"'''),
    ("name: demo", "name: " + "a" * 65, 2, "run.name must be text that matches"),
    ("name: demo", "name: 2024", 2, 'it is 2024; put quotes around it: "2024"'),
    ("seed: 1", "seed: -1", 3, "run.seed must be a whole number of at least 0; it is -1"),
    ("seed: 1", "seed: true", 3, "run.seed must be a whole number of at least 0; it is true"),
    ("seed: 1", "seed: 99999999999999999999", 3, "does not fit into 64 bits"),
    (
        "hidden_size: 64",
        "hidden_size: 0",
        5,
        "model.hidden_size must be a whole number of at least 1; it is 0",
    ),
    ("hidden_size: 64", "hidden_size: 64.0", 5, "it is 64.0; write 64"),
    ("hidden_size: 64", "hidden_size: '64'", 5, 'it is the text "64"; write 64, without quotes'),
    ("hidden_size: 64", "hidden_size: 1_024", 5, "write 1024, without quotes or separators"),
    (
        "hidden_size: 64",
        "hidden_size:",
        5,
        "model.hidden_size must be a whole number of at least 1; it is null",
    ),
    (
        "num_key_value_heads: 2",
        "head_dim: None",
        8,
        'whole number of at least 1, or null; it is the text "None"; write null',
    ),
    (
        "num_key_value_heads: 2",
        "mlp: relu",
        8,
        'model.mlp must be one of swiglu, geglu, gelu, relu2; it is the text "relu"',
    ),
    ("num_key_value_heads: 2", "mlp: swigul", 8, "did you mean swiglu?"),
    ("num_key_value_heads: 2", "mlp_bias: yes", 8, 'must be true or false; it is the text "yes"; write true'),
    ("num_key_value_heads: 2", "mlp_bias: 1", 8, "model.mlp_bias must be true or false; it is 1"),
    (
        "num_key_value_heads: 2",
        "norm_eps: 1",
        8,
        "model.norm_eps must be a number above 0 and at most 0.01; it is 1",
    ),
    (
        "num_key_value_heads: 2",
        "hidden_dropout: 1.0",
        8,
        "must be a number of at least 0 and below 1; it is 1.0",
    ),
    (
        "num_key_value_heads: 2",
        "vocab_size: all",
        8,
        "model.vocab_size must be a whole number of at least 1, or auto",
    ),
    ("type: bpe", "type: BPE", 11, "data.tokenizer.type must be one of bpe, bytes, file, hub"),
    (
        "vocab_size: 512",
        "vocab_size: 100",
        12,
        "must be a whole number from 257 to 16777216, or null; it is 100",
    ),
    ("type: stdlib", "type: stdlbi", 14, "data.sources.0.type must be one of stdlib, text, jsonl"),
    ("- type: stdlib", "- name: a", 14, "data.sources.0.type is required: one of stdlib, text, jsonl"),
    ("- type: stdlib", "- stdlib", 14, "data.sources.0 must be a section (a mapping of keys)"),
    ("path: books/*.txt", "path: [a, 1]", 16, "data.sources.1.path must be text, a list of texts, or null"),
    ("weight: 2", "weight: -1", 17, "data.sources.1.weight must be a number of at least 0; it is -1"),
    (
        "weight: 2",
        "weight: .inf",
        17,
        "data.sources.1.weight must be a number of at least 0; it is .inf; it must be finite",
    ),
    ("sequence_length: 128", "sequence_length: 1", 18, "must be a whole number of at least 2; it is 1"),
    ("sequence_length: 128", "errors: ignore", 18, "data.errors must be one of skip, replace, raise"),
    (
        "max_steps: 200",
        "max_steps: 1e3",
        20,
        "train.max_steps must be a whole number of at least 1, or null; it is 1000.0; write 1000",
    ),
    ("max_steps: 200", "max_steps: many", 20, 'it is the text "many"'),
    (
        "micro_batch_size: 4",
        "micro_batch_size: all",
        22,
        'a whole number of at least 1, or auto; it is the text "all"',
    ),
    (
        "micro_batch_size: 4",
        "micro_batch_size: 0",
        22,
        "train.micro_batch_size must be a whole number of at least 1, or auto",
    ),
    (
        "micro_batch_size: 4",
        "precision: fp16",
        22,
        'must be one of auto, bf16, fp32, fp8; it is the text "fp16"; did you mean',
    ),
    (
        "learning_rate: 1e-3",
        "learning_rate: 1e-3x",
        24,
        "optimizer.learning_rate must be a number above 0 and at most 10",
    ),
    ("learning_rate: 1e-3", "learning_rate: .nan", 24, "it is .nan; it must be finite"),
    (
        "betas: [0.9, 0.99]",
        "betas: 0.9",
        25,
        "optimizer.betas must be a list of 2, each a number of at least 0 and below 1; it is 0.9",
    ),
    ("betas: [0.9, 0.99]", "betas: [0.9]", 25, "optimizer.betas must be a list of 2"),
    ("betas: [0.9, 0.99]", "betas: [0.9, 1.5]", 25, "a number of at least 0 and below 1; it is [0.9, 1.5]"),
    ("betas: [0.9, 0.99]", "betas: [x, [y]]", 25, 'it is ["x", ["y"]]'),
    ("name: cosine", "name: cosin", 27, "schedule.name must be one of cosine, linear, constant, wsd"),
    (
        "every_steps: 50",
        "every_steps: 50%",
        30,
        'evaluate.every_steps must be a whole number of at least 0; it is the text "50%"',
    ),
    ("mode: disabled", "mode: off", 33, "did you mean disabled?"),
    ("mode: disabled", "project: a/b", 33, "monitor.wandb.project must be text that matches"),
    (
        "wandb:\n    mode: disabled",
        "wandb: 3",
        32,
        "monitor.wandb must be a section (a mapping of keys); it is 3",
    ),
    (
        "evaluate:\n  every_steps: 50",
        "evaluate: [50]",
        29,
        "evaluate must be a section (a mapping of keys); it is [50]",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "what"), UNKNOWN_KEYS + WRONG_VALUES)
def test_a_mistake_is_named_with_its_line_and_remedy(
    old: str, new: str, line: int, what: str, base: str, refused: Refused
) -> None:
    assert old in base
    lines = refused(base.replace(old, new, 1)).splitlines()
    assert any(shown.startswith(f"  c.yaml:{line}: ") and what in shown for shown in lines), lines
    assert sum(shown.startswith("  c.yaml:") for shown in lines) <= 2, "one mistake makes one message"


@pytest.mark.parametrize(
    "mistake", [case for case in WRONG_VALUES if "section" not in case[3] and "64 bits" not in case[3]]
)
def test_a_wrong_value_is_one_mistake(
    mistake: tuple[str, str, int, str], base: str, refused: Refused
) -> None:
    old, new, _, _ = mistake
    assert refused(base.replace(old, new, 1)).splitlines()[0] == "c.yaml: 1 mistake"


def test_a_key_s_documentation_is_quoted(base: str, refused: Refused) -> None:
    message = refused(base.replace("max_steps: 200", "max_steps: x"))
    assert "      Optimizer steps; where absent, `max_minutes` decides." in message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode: disabled", "mode: disabled\n    api_key: s3cr3tvalue"),
        ("mode: disabled", "mode: disabled\n    wandb_key: s3cr3tvalue"),
        ("monitor:", "WANDB_API_KEY: s3cr3tvalue\nmonitor:"),
        ("monitor:", "hf_token: s3cr3tvalue\nmonitor:"),
        ("monitor:", "password: [s3cr3tvalue]\nmonitor:"),
    ],
)
def test_a_secret_in_a_file_is_refused_and_not_shown(old: str, new: str, base: str, refused: Refused) -> None:
    message = refused(base.replace(old, new, 1))
    assert "secrets never belong in a configuration" in message
    assert "environment" in message
    assert "s3cr3tvalue" not in message
