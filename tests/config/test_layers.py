"""Values that several files mixed without a word are named, with where they came from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.load import load

Write = Callable[..., str]

MUON = """\
data: {sources: [{type: stdlib}]}
train: {max_steps: 200}
optimizer: {name: muon, learning_rate: 8e-3, betas: [0.9, 0.95], momentum: 0.9}
schedule: {warmup_steps: 40}
"""
WIDE = "model:\n  hidden_size: 1024\n  num_attention_heads: 8\n  intermediate_size: 4000\n"
SMALL = "model:\n  hidden_size: 64\n  num_attention_heads: 8\n"


def remarks(write: Write, text: str, *overrides: str) -> tuple[str, ...]:
    return load(write(text, "top.yaml"), overrides).remarks


def test_what_was_set_for_another_optimizer_is_named(write: Write) -> None:
    write(MUON, "base.yaml")
    (remark,) = remarks(write, "extends: base.yaml\noptimizer:\n  name: adamw\n")
    assert remark == (
        'optimizer.name is "adamw" (top.yaml:3), but optimizer.learning_rate 0.008 (base.yaml:3), '
        "optimizer.momentum 0.9 (base.yaml:3) and schedule.warmup_steps 40 (base.yaml:4) were set for "
        '"muon"; set each for "adamw" too'
    ), "betas are as by default"


def test_what_is_set_beside_or_above_the_choice_is_meant(write: Write) -> None:
    write(MUON, "base.yaml")
    own = "optimizer: {name: adamw, learning_rate: 1e-3, momentum: 0.95}\nschedule: {warmup_steps: 9}\n"
    assert remarks(write, f"extends: base.yaml\n{own}") == ()
    write(f"extends: base.yaml\n{own}", "middle.yaml")
    assert remarks(write, "extends: middle.yaml\nschedule: {warmup_steps: 40}\n") == ()


def test_a_choice_on_the_command_line_counts_too(write: Write) -> None:
    text = MUON.replace("name: muon, ", "").replace(", momentum: 0.9", "")
    (remark,) = remarks(write, text, "optimizer.name=muon")
    assert remark.startswith('optimizer.name is "muon" (command line), but optimizer.learning_rate 0.008')
    assert 'were set for "adamw"' in remark, "the default, where no file names another one"
    values = ["optimizer.learning_rate=1e-3", "schedule.warmup_steps=5"]
    assert remarks(write, text, "optimizer.name=muon", *values) == ()


def test_a_choice_that_comes_back_is_no_other(write: Write) -> None:
    write(MUON, "base.yaml")
    write("extends: base.yaml\noptimizer: {name: adamw}\n", "middle.yaml")
    assert remarks(write, "extends: middle.yaml\noptimizer: {name: muon}\n") == ()


@pytest.mark.parametrize(
    ("base", "overrides", "says"),
    [
        (
            "data: {tokenizer: {type: hub, name: a/b, revision: abc}, sources: [{type: stdlib}]}",
            ["data.tokenizer.name=c/d"],
            'data.tokenizer.revision "abc" (top.yaml:1) was set for "a/b"; set it for "c/d" too',
        ),
        (
            "data: {tokenizer: {end_of_text: <s>}, sources: [{type: stdlib}]}",
            ["data.tokenizer.type=bytes"],
            'type is "bytes" (command line), but data.tokenizer.end_of_text "<s>" (top.yaml:1) was',
        ),
        (
            "data: {sources: [{type: stdlib}, {type: hub, dataset: a, subset: x}]}",
            ["data.sources.1.dataset=b"],
            'dataset is "b" (command line), but data.sources.1.subset "x" (top.yaml:1) was set for',
        ),
        (
            "data: {sources: [{type: jsonl, path: a, text_field: body}]}",
            ["data.sources.0.type=parquet"],
            'but data.sources.0.path "a" (top.yaml:1) and data.sources.0.text_field "body" (top.yaml:1) were',
        ),
        (
            "data: {sources: [{type: stdlib}]}\nmodel: {hidden_size: 64, num_attention_heads: 4}",
            ["model.hidden_size=128"],
            "model.num_attention_heads 4 (top.yaml:2) was set for 64; set it for 128 too",
        ),
        (
            "data: {sources: [{type: stdlib}]}\nschedule: {name: wsd, decay_fraction: 0.3, warmup_steps: 5}",
            ["schedule.name=cosine"],
            'schedule.decay_fraction 0.3 (top.yaml:2) was set for "wsd"',
        ),
    ],
)  # fmt: skip
def test_other_choices_with_what_is_tied_to_them(
    base: str, overrides: list[str], says: str, write: Write
) -> None:
    assert says in remarks(write, f"{base}\ntrain: {{max_steps: 200}}\n", *overrides)[0]


def test_a_list_that_is_replaced_takes_nothing_over(write: Write) -> None:
    write(f"{MUON}\n".replace("{type: stdlib}", "{type: jsonl, path: a, text_field: body}"), "base.yaml")
    assert remarks(write, "extends: base.yaml\ndata: {sources: [{type: parquet, path: b}]}\n") == (
        remarks(write, "extends: base.yaml\n")
    )


def test_a_file_of_a_list_that_changes_part_of_another_is_named(write: Write) -> None:
    write(WIDE, "wide.yaml")
    write(SMALL, "small.yaml")
    write(MUON, "run.yaml")
    remark = remarks(write, "extends: [run.yaml, wide.yaml, small.yaml]\n")[0]
    assert remark.startswith(
        "small.yaml changes 1 of the 2 model settings of wide.yaml, which comes before it in extends: "
        "model.hidden_size 1024 -> 64 (small.yaml:2); the last file of a list wins"
    ), "what both set alike is in neither number"


def test_a_file_of_a_list_that_replaces_another_is_no_mixture(write: Write) -> None:
    write(WIDE, "wide.yaml")
    write(SMALL, "small.yaml")
    write(MUON, "run.yaml")
    assert remarks(write, "extends: [run.yaml, small.yaml, wide.yaml]\n") == ()


def test_what_the_file_itself_sets_is_meant(write: Write) -> None:
    write(WIDE, "wide.yaml")
    write(SMALL, "small.yaml")
    write(MUON, "run.yaml")
    own = "model: {hidden_size: 96, num_attention_heads: 4, intermediate_size: 100}\n"
    assert remarks(write, f"extends: [run.yaml, wide.yaml, small.yaml]\n{own}") == ()
    write("extends: wide.yaml\nmodel: {num_hidden_layers: 3}\n", "deeper.yaml")
    assert remarks(write, "extends: [run.yaml, deeper.yaml]\n") == (), "deeper.yaml knows what it extends"
