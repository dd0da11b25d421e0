"""Settings that contradict each other are refused; both values and their origins are named."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from llmkit.config.load import check_again, load
from llmkit.config.settings import Facts
from llmkit.errors import UserError

Write = Callable[..., str]
Refused = Callable[..., str]
RefusedForOne = Callable[[list[str], str], None]

CONTRADICTIONS = [
    # (overrides, what the message says)
    (
        ["data.tokenizer.type=bytes"],
        'data.tokenizer.vocab_size 512 (c.yaml:12) does not belong to data.tokenizer.type "bytes"',
    ),
    (
        ["train.ema={decay: 0.9, half_life_tokens: 1000}"],
        "train.ema.decay 0.9 (command line) does not go with train.ema.half_life_tokens 1000 (command line)",
    ),
    (["data.tokenizer.path=a.json"], 'data.tokenizer.path "a.json" (command line) does not belong to'),
    (["data.tokenizer.name=gpt2"], "data.tokenizer.name is only for the tokenizer type hub"),
    (["data.tokenizer.revision=main"], "data.tokenizer.revision is only for the tokenizer type hub"),
    (
        ["data.tokenizer={type: file, vocab_size: null}"],
        'data.tokenizer.type "file" (command line) needs data.tokenizer.path',
    ),
    (
        ["data.tokenizer={type: hub, vocab_size: null}"],
        'data.tokenizer.type "hub" (command line) needs data.tokenizer.name',
    ),
    (["data.tokenizer={type: hub, vocab_size: null, name: ../../etc}"], "is no hub id"),
    (["data.tokenizer.end_of_text=''"], "data.tokenizer.end_of_text"),
    (
        ["data.sources.0.path=x"],
        'data.sources.0.path "x" (command line) does not belong to data.sources.0.type "stdlib"',
    ),
    (
        ["data.sources.1.text_field=body"],
        "text_field is only for sources of type jsonl, parquet, arrow and hub",
    ),
    (
        ["data.sources.1.type=jsonl", "data.sources.1.separator=x"],
        "separator is only for sources of type text",
    ),
    (["data.sources.1.path=null"], 'data.sources.1.type "text" (c.yaml:15) needs data.sources.1.path'),
    (["data.sources.1.path=[]"], "needs data.sources.1.path"),
    (["data.sources.1.path=[a, '']"], "has an empty path in it"),
    (['data.sources.1.path="a\\0b"'], "has a NUL character in it"),
    (["data.sources.1.separator=''"], "data.sources.1.separator"),
    (["data.sources.1.record=chat"], "record is only for sources of type jsonl, parquet, arrow and hub"),
    (
        ["data.sources.1.type=jsonl", "data.sources.1.record=chat", "data.sources.1.text_field=body"],
        'data.sources.1.text_field "body" (command line) does not belong to data.sources.1.record "chat"',
    ),
    (["data.sources.0.live=true"], "live is only for sources of type text, jsonl, parquet, arrow and hub"),
    (["data.sources.1={type: hub}"], 'data.sources.1.type "hub" (command line) needs data.sources.1.dataset'),
    (["data.sources.1={type: shards, path: [a, b]}"], "one path; give each its own source"),
    (["data.sources.1.heldout_path=x"], "heldout_path is only for sources of type shards; leave it out"),
    (
        ["data.sources.0.weight=0", "data.sources.1.weight=0"],
        "data.sources.0.weight 0.0 (command line) and data.sources.1.weight 0.0 (command line): no source is",
    ),
    (
        ["data.curriculum=[{step: 9, weights: {stdlib-0: 0, text-1: 0}}]"],
        "leave no source to draw from",
    ),
    (
        ["data.curriculum=[{step: 9, weights: {text: 1}}]"],
        'names "text", which is no source\n      the sources are stdlib-0, text-1',
    ),
    (
        ["data.curriculum=[{step: 9, weights: {text-1: 1}}, {step: 9, weights: {text-1: 3}}]"],
        "are the same step",
    ),
    (
        ["data.curriculum=[{step: 9, weights: {'{x}{7}': 1, text-1: 1}}]"],
        'data.curriculum.0.weights a mapping (command line) names "{x}{7}", which is no source',
    ),
    (["data.sources.0.name=a", "data.sources.1.name=a"], 'two sources are called "a"'),
    (["data.sources.0.name=text-1"], 'two sources are called "text-1"'),
    (['run.dir="a\\0b"'], "run.dir"),
    (["run.dir=''"], 'run.dir "" (command line) is empty'),
    (["data.cache_dir=''"], "data.cache_dir"),
    (
        ["data.validation_fraction=0"],
        "evaluate.every_steps 50 (c.yaml:30) has nothing to evaluate on\n      data.validation_fraction 0",
    ),
    (
        ["evaluate.early_stopping=3", "evaluate.every_steps=0"],
        "needs evaluations during training: evaluate.every_steps 0",
    ),
]


@pytest.mark.parametrize(("overrides", "what"), CONTRADICTIONS)
def test_a_contradiction_names_both_values(
    overrides: list[str], what: str, refused_for_one: RefusedForOne
) -> None:
    refused_for_one(overrides, what)


ACCESS = [
    ("https://joe:s3cr3t@host/a.jsonl", "a user or password before the host"),
    ("s3://s3cr3t@bucket/a.jsonl", "a user or password before the host"),
    ("zip://a.jsonl::HTTPS://joe:s3cr3t@host/a.zip", "a user or password before the host"),
    ("https://host/a.jsonl?X-Amz-Date=1&X-Amz-Signature=s3cr3t", '"signature" after the path'),
    ("https://host/a.jsonl?x-amz-credential=s3cr3t", '"credential" after the path'),
    ("https://host/a.jsonl?X-Amz-Security-Token=s3cr3t", '"token" after the path'),
    ("https://host/a.jsonl?X-Goog-Signature=s3cr3t", '"signature" after the path'),
    ("https://host/a.jsonl?Expires=1;Signature=s3cr3t", '"signature" after the path'),
    ("https://host/a.jsonl?AWSAccessKeyId=s3cr3t", '"awsaccesskeyid" after the path'),
    ("https://host/a.jsonl?sv=2024&sig=s3cr3t", '"sig" after the path'),
    ("https://host/a.jsonl?access%5Ftoken=s3cr3t", '"token" after the path'),
    ("https://host/a.jsonl#api_key=s3cr3t", '"key" after the path'),
    ("https://host/[ab]?key=s3cr3t", '"key" after the path'),
    ("https://host/a?apikey=s3cr3t", '"apikey" after the path'),
    ("https://host/a?PASSWORD=s3cr3t", '"password" after the path'),
]


@pytest.mark.parametrize(("url", "what"), ACCESS)
@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("data.sources.1.path", "{}"),
        ("data.sources.1.path", "[a.txt, '{}']"),
        ("data.cache_dir", "{}"),
    ],
)
def test_a_url_that_gives_access_is_refused_and_not_shown(
    url: str, what: str, key: str, form: str, base: str, refused: Refused
) -> None:
    message = refused(base, f"{key}={form.format(url)}")
    assert "1 mistake" in message
    assert f"{key} has a URL in it with {what}" in message
    assert "s3cr3t" not in message


def test_a_url_that_gives_access_is_not_shown_by_other_mistakes(base: str, refused: Refused) -> None:
    text = base.replace("- type: stdlib", "- {type: stdlib, path: 'https://joe:s3cr3t@host/a'}")
    message = refused(text, "data.sources.1.heldout_path=s3://s3cr3t@b/c")
    assert "4 mistakes" in message
    assert "data.sources.0.path a URL that gives access (not shown)" in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize(
    "path",
    [
        "https://host/a.jsonl?version=2&expires=9&monkey=1&design=x",
        "hf://datasets/org/name@main/a.jsonl",
        "s3://bucket/joe@home/a?.jsonl",
        "me@home/key=1/sig=2.txt",
        "https://host:8080/[a-c]/token=5/*.jsonl",
    ],
)
def test_a_url_that_gives_no_access_is_accepted(path: str, write: Write) -> None:
    load(write(), [f"data.sources.1.path='{path}'"])


@pytest.mark.parametrize(
    ("curriculum", "what"),
    [
        ("[5]", "data.curriculum.0 must be"),
        ("[{weights: {text-1: 1}}]", "data.curriculum.0.step is required"),
        ("[{step: 3}]", "data.curriculum.0.weights is required"),
        ("[{step: 3, weights: {text-1: -1}}]", "data.curriculum.0.weights must be a mapping of names"),
        ("[{step: 3, weights: {}}]", "data.curriculum.0.weights must be a mapping of names"),
        ("[{step: 3, wieghts: {text-1: 1}}]", "did you mean data.curriculum.0.weights?"),
        ("5", "data.curriculum must be a list of sections"),
    ],
)
def test_a_curriculum_that_is_none(curriculum: str, what: str, base: str, refused: Refused) -> None:
    assert what in refused(base, f"data.curriculum={curriculum}")


def test_a_source_may_wait_for_its_stage(base: str, write: Write) -> None:
    overrides = ["data.sources.1.weight=0", "data.curriculum=[{step: 100, weights: {text-1: 2.5}}]"]
    config = load(write(base), overrides).config
    assert config.data.curriculum[0].weights == {"text-1": 2.5}


def test_early_stopping_needs_held_out_documents_too(base: str, refused: Refused) -> None:
    message = refused(base, "evaluate.early_stopping=3", "data.validation_fraction=0")
    assert "evaluate.early_stopping 3 (command line) needs held-out documents" in message


def test_braces_in_the_name_of_a_file_are_shown_as_they_are(base: str, write: Write) -> None:
    path = write(
        base.replace("sequence_length: 128", "sequence_length: 128\n  validation_fraction: 0"), "{0}.yaml"
    )
    with pytest.raises(
        UserError, match=re.escape("data.validation_fraction 0.0 ({0}.yaml:19) holds nothing out")
    ):
        load(path)


GIVEN = "data.sources=[{type: shards, path: a}, {type: megatron, path: b}]"


def test_what_holds_nothing_out_is_known_from_the_settings(base: str, refused: Refused, write: Write) -> None:
    message = refused(base, GIVEN)
    assert (
        "evaluate.every_steps 50 (c.yaml:30) has nothing to evaluate on\n      sources of type shards"
        in message
    )
    load(write(base), [GIVEN, "evaluate.every_steps=0"])
    held = "data.sources=[{type: shards, path: a, heldout_path: c}]"
    load(write(base), [held, "data.validation_fraction=0", "evaluate.early_stopping=3"])


def test_early_stopping_needs_what_the_data_turn_out_to_hold_out(base: str, write: Write) -> None:
    loaded = load(write(base), ["evaluate.early_stopping=3"])
    assert not check_again(loaded, Facts(holds_out=True))
    (mistake,) = check_again(loaded, Facts(holds_out=False))
    assert "evaluate.early_stopping 3 (command line)" in mistake.what
    assert mistake.note.startswith("of the few documents of the sources, data")
    assert not check_again(load(write(base)), Facts(holds_out=False))


def test_contradictions_are_reported_together_and_with_other_mistakes(base: str, refused: Refused) -> None:
    text = base.replace("seed: 1", "sed: 1")
    message = refused(text, "model.hidden_size=66", "train.max_steps=null", "train.micro_batch_size=5")
    assert "c.yaml: 4 mistakes" in message


def test_a_contradiction_of_defaults_is_placed_at_its_section(base: str, refused: Refused) -> None:
    message = refused(base.replace("  max_steps: 200\n", ""))
    assert "  c.yaml:19: one of train.max_steps" in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.hidden_size=66", "model.head_dim=8"],
        ["model.hidden_size=60", "model.position_embedding=learned"],
        ["train.max_steps=null", "train.max_minutes=1.5"],
        ["train.max_steps=20"],
        ["data.validation_fraction=0", "evaluate.every_steps=0"],
        ["model.vocab_size=512"],
        ["data.tokenizer={type: hub, vocab_size: null, name: openai-community/gpt2, revision: main}"],
        ["data.tokenizer={type: file, vocab_size: null, path: t.json}"],
        ["data.sources=[{type: jsonl, path: [a.jsonl, 'b c.jsonl'], text_field: body}]"],
        ['data.sources=[{type: text, path: a, separator: "\\n\\n"}]'],
        ["data.sources=[{type: stdlib, text_field: text}]"],
        ["parallel.world_size=8", "parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
        ["parallel.offload=cpu", "parallel.zero_stage=auto"],
        ["parallel.activation_checkpointing=full", "parallel.activation_checkpointing_every=3"],
        ["optimizer.name=muon", "parallel.zero_stage=3", "parallel.tensor_parallel_size=2"],
    ],
)
def test_what_is_consistent_is_accepted(overrides: list[str], write: Write) -> None:
    load(write(), overrides)
