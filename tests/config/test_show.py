"""A configuration as text reads back as the same configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.config.load import Loaded, load
from llmkit.config.model_section import Model
from llmkit.config.monitor_section import Monitor
from llmkit.config.optimizer_section import Optimizer, ParameterGroup
from llmkit.config.schema import Config, Data, Run, Source, Stage, Tokenizer, Train
from llmkit.config.show import coloured, show, show_keys, to_yaml, wrapped
from llmkit.plan import resolve_plan
from llmkit.plan.text import show_plan

Write = Callable[..., str]

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
paths = words.filter(lambda text: "\0" not in text)
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
below_one = st.floats(0, 1, exclude_max=True)
AWKWARD = [
    "1",
    "1e-4",
    "0x1F",
    "true",
    "null",
    "~",
    "",
    "- a",
    "a: b",
    "a #b",
    " a ",
    "'",
    '"',
    "\\",
    "\n",
    "\t",
    "\x00",
]
AWKWARD += [
    "@x",
    "*x",
    "&x",
    "!x",
    "%x",
    "[a",
    "{a",
    "|",
    ">",
    "?",
    "-",
    "---",
    "...",
    "\ufeff",
    "\u2028",
    "\x85",
    "😀",
    "é",
]
AWKWARD += [
    "$(rm -rf .)",
    "off",
    "=",
    "<<",
    ".inf",
    "1_000",
    "2024-01-01",
    "\x7f",
    "\x1b[31m",
    "\ufffe",
    "a\r\nb",
    "😀\x01",
]
texts = words | st.sampled_from(AWKWARD)


def shown(loaded: Loaded) -> str:
    return show(loaded, show_plan(resolve_plan(loaded)))


groups = st.builds(
    ParameterGroup,
    params=st.lists(st.sampled_from(["*norm.weight", "embedding.?eight", "blocks.[01].mlp.*"]), min_size=1),
    name=st.none() | st.just("adamw"),
    learning_rate=st.none() | st.just(1e-5),
    betas=st.none() | st.tuples(below_one, below_one),
    eps=st.none() | positive,
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    count = draw(st.integers(1, 3))
    sources = []
    kinds: list[Literal["stdlib", "text", "jsonl"]] = ["stdlib", "text", "jsonl"]
    for index in range(count):
        kind = draw(st.sampled_from(kinds))
        given_path = draw(paths | st.lists(paths, min_size=1, max_size=3)) if kind != "stdlib" else None
        sources.append(
            Source(
                type=kind,
                name=f"s{index}" if draw(st.booleans()) else None,
                path=given_path,
                weight=draw(positive),
                text_field=draw(texts) if kind == "jsonl" else "text",
                separator=draw(words | st.none()) if kind == "text" else None,
            )
        )
    data = Data(
        sources=sources,
        tokenizer=Tokenizer(end_of_text=draw(words), vocab_size=draw(st.none() | st.integers(257, 5000))),
        cache_dir=draw(paths),
    )
    return Config(
        run=Run(name=draw(names), dir=draw(paths), seed=draw(st.integers(0, 2**63 - 1))),
        model=Model(
            rope_theta=draw(positive),
            qk_norm=draw(st.booleans()),
            sliding_window=draw(st.none() | st.just(5)),
            attn_logit_softcapping=draw(st.none() | st.just(30.0)),
        ),
        data=data,
        train=Train(max_steps=draw(st.integers(100, 10**12)), max_minutes=draw(st.none() | positive)),
        optimizer=Optimizer(
            betas=(draw(below_one), draw(below_one)), eps=draw(positive),
            groups=draw(st.just([]) | st.lists(groups, min_size=1, max_size=1)),
        ),
        monitor=Monitor(sample=draw(texts | st.none())),
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(configs(), st.booleans())
def test_what_is_written_reads_back_the_same(config: Config, told: bool) -> None:
    origins = {"run.name": "a\nb: c.yaml:3", "run.seed": "command line"} if told else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(to_yaml(config, origins), encoding="utf-8")
        assert load(path).config == config


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_read_back_the_same(text: str, write: Write) -> None:
    config = Config(
        data=Data(
            sources=[Source(type="text", path=["x", "a, b", "]"], separator=text or "x", name="s-1.x")],
            curriculum=[Stage(step=7, weights={"s-1.x": 0.25})],
        ),
        monitor=Monitor(sample=text),
        train=Train(max_steps=100),
    )
    read = load(write(to_yaml(config))).config
    assert read.monitor.sample == text
    assert read == config


def test_a_resolved_configuration_lies_under_overrides_like_any_other(write: Write) -> None:
    write(to_yaml(load(write()).config), "runs/demo/config.yaml")
    assert load("runs/demo/config.yaml", ["train.max_steps=900"]).config.train.max_steps == 900


def test_each_line_shows_where_its_value_came_from(write: Write) -> None:
    text = shown(load(write(), ["train.max_steps=300"]))
    lines = {line.split("#")[0].strip(): line.partition("#")[2].strip() for line in text.splitlines()}
    assert lines["name: demo"] == "c.yaml:2"
    assert lines["max_steps: 300"] == "command line"
    assert lines["dir: runs"] == "default"
    assert lines["- type: stdlib"] == "c.yaml:14"
    assert lines["betas: [0.9, 0.99]"] == "c.yaml:25"


def test_the_comments_are_aligned(write: Write) -> None:
    lines = shown(load(write())).split("\n\n")[0].splitlines()
    assert (
        len({line.index("  # ") for line in lines if "  # " in line and len(line.split("  # ")[0]) < 60}) == 1
    )


def test_derived_values_follow(write: Write) -> None:
    text = shown(load(write(), ["parallel.world_size=2"]))
    assert "# derived:" in text
    assert "accumulation_steps" in text
    values = {line.split()[1]: line.split()[2] for line in text.split("# derived:\n")[1].splitlines()}
    assert values["head_dim"] == "16"
    assert values["accumulation_steps"] == "2"
    assert values["tokens_per_step"] == "2,048"


def test_the_whole_view_reads_back_too(write: Write) -> None:
    loaded = load(write())
    assert load(write(shown(loaded), "view.yaml")).config == loaded.config


def test_the_reference_names_type_default_and_meaning() -> None:
    text = show_keys()
    assert (
        "train.max_steps\n    a whole number of at least 1, or null (default: null)\n    Optimizer steps"
        in text
    )
    assert 'data.tokenizer.type\n    one of bpe, bytes, file, hub, init_from (default: "bpe")' in text
    assert "shards, megatron (default: required)" in text


def test_on_a_terminal_comments_are_wrapped_below_their_column() -> None:
    text = "a: 1  # default\n#   memory     32 MiB a process and more\n# note: this is not what was meant\n"
    assert wrapped(text, 30) == (
        "a: 1  # default\n"
        "#   memory     32 MiB a\n"
        "#              process and\n"
        "#              more\n"
        "# note: this is not what was\n"
        "#       meant\n"
    )
    assert wrapped(text, 100) == text
    shown = coloured(wrapped(text, 30)).splitlines()
    assert [line.startswith("\x1b[33m") for line in shown] == [False] * 4 + [True] * 2
    assert wrapped("# " + "x" * 50, 20) == "# " + "x" * 50  # words are whole
