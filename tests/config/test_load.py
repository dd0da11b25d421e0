"""Loading: what overrides what, where each value came from, files that extend others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.config.load import MAX_EXTENDS, load
from llmkit.config.optimizer_section import Schedule
from llmkit.config.schema import Config
from llmkit.errors import UserError

Write = Callable[..., str]
Refused = Callable[..., str]


def test_values_and_their_origins(write: Write) -> None:
    loaded = load(write(), ["train.max_steps=300", "model.num_key_value_heads=null"])
    config = loaded.config
    assert (config.run.name, config.model.hidden_size, config.train.max_steps) == ("demo", 64, 300)
    assert config.optimizer.betas == (0.9, 0.99)
    assert config.data.sources[1].weight == 2.0
    assert config.model.num_key_value_heads is None
    assert loaded.origins["run.name"] == "c.yaml:2"
    assert loaded.origins["data.sources.1.weight"] == "c.yaml:17"
    assert loaded.origins["data.sources.1.separator"] == "default"
    assert loaded.origins["train.max_steps"] == "command line"
    assert loaded.origins["model.num_key_value_heads"] == "command line"
    assert loaded.origins["run.dir"] == "default"
    assert loaded.path == Path("c.yaml")


def test_assumed_values_hold_where_nothing_is_given(write: Write) -> None:
    loaded = load(write(), ["train.max_steps=3"], assumed={"train.max_steps": 9, "train.z_loss": 0.5})
    assert (loaded.config.train.max_steps, loaded.config.train.z_loss) == (3, 0.5)
    assert loaded.origins["train.max_steps"] == "command line"
    assert loaded.origins["train.z_loss"] == "assumed"


def test_a_section_that_is_reset_starts_from_the_defaults(write: Write) -> None:
    write(name="base.yaml")
    write("reset: model\nmodel: {hidden_size: 96}\n", "other.yaml")
    loaded = load(write("extends: [base.yaml, other.yaml]\n", "top.yaml"), ["model.mlp_bias=true"])
    model = loaded.config.model
    assert (model.hidden_size, model.num_hidden_layers, model.mlp_bias) == (96, 12, True)
    assert loaded.origins["model.num_hidden_layers"] == "default" and loaded.config.run.name == "demo"
    assert loaded.remarks == (), "nothing of the base's model is left to be mixed"
    write("extends: base.yaml\nmodel: {rope_scaling: {rope_type: linear, factor: 3}}\n", "scaled.yaml")
    text = "extends: scaled.yaml\nreset: model.rope_scaling\n"
    config = load(write(text, "below.yaml")).config
    assert config.model.rope_scaling.factor is None and config.model.hidden_size == 64
    on_top = write("extends: base.yaml\nreset: [model, schedule]\n", "on_top.yaml")
    config = load(on_top).config
    assert config.model.hidden_size == 768 and config.schedule == Schedule()


def test_what_cannot_be_reset_is_named(write: Write, refused: Refused) -> None:
    write(name="base.yaml")
    for name in ("model.hidden_size", "data.sources", "modle"):
        message = refused(f"extends: base.yaml\nreset: [{name}]\n")
        assert f'c.yaml:2: reset: "{name}" is no section of settings' in message
    assert "model must be a section" in refused("extends: base.yaml\nmodel: 3\nreset: model.rope_scaling\n")
    message = refused("extends: base.yaml\nreset: 3\n")
    assert "c.yaml:2: reset must be the name of a section, or a list of names; it is 3" in message


def test_a_path_object_and_a_folder_in_the_name_work(write: Write) -> None:
    write(name="configs/demo.yaml")
    assert load(Path("configs/demo.yaml")).origins["run.name"] == "configs/demo.yaml:2"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("data.sources.0.weight=3", lambda c: c.data.sources[0].weight == 3.0),
        ("data.sources=[{type: stdlib, name: own}]", lambda c: [s.name for s in c.data.sources] == ["own"]),
        (
            "data.tokenizer={vocab_size: 300}",
            lambda c: c.data.tokenizer.vocab_size == 300 and c.data.tokenizer.type == "bpe",
        ),
        ("optimizer.betas=[0.8, 0.9]", lambda c: c.optimizer.betas == (0.8, 0.9)),
        ("optimizer.betas.1=0.95", lambda c: c.optimizer.betas == (0.9, 0.95)),
        ("monitor.sample=a=b", lambda c: c.monitor.sample == "a=b"),
        ('monitor.sample="1"', lambda c: c.monitor.sample == "1"),
        ("monitor.sample=off", lambda c: c.monitor.sample == "off"),
        ("monitor.sample=\"a\\n$(id) 'x'\"", lambda c: c.monitor.sample == "a\n$(id) 'x'"),
        ("run.seed=0x10", lambda c: c.run.seed == 16),
        ("kernels.compile=false", lambda c: c.kernels.compile is False),
        ("train.max_minutes=5", lambda c: c.train.max_minutes == 5.0),
    ],
)
def test_overrides(override: str, read: Callable[[Config], bool], write: Write) -> None:
    assert read(load(write(), [override]).config)


def test_the_last_of_two_overrides_wins(write: Write) -> None:
    assert load(write(), ["run.seed=5", "run.seed=6"]).config.run.seed == 6


def test_an_override_of_one_list_entry_shows_in_the_origin(write: Write) -> None:
    assert load(write(), ["optimizer.betas.1=0.95"]).origins["optimizer.betas"] == "c.yaml:25, command line"


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("nonsense", "command line: nonsense: there is no `=`"),
        ("=3", "is no dotted key"),
        ("train..max_steps=3", "is no dotted key"),
        (" train.max_steps=3", "is no dotted key"),
        ("train.max_steps = 3", "leave out the spaces around the key"),
        ("stdlib}]", "put it whole into single quotes"),
        ("models/gpt2.yaml", "more of them are named after `extends:`"),
        ("a" + ".a" * 50_000 + "=1", "is no dotted key"),
        ("--train.max_steps=3", "no dashes"),
        ("extends=other.yaml", "`extends` stands in files only"),
        (
            "train.max_step=3",
            "command line: train.max_step=3: train.max_step is an unknown key; did you mean train.max_steps?",
        ),
        ("max_steps=3", "max_steps is an unknown key; did you mean train.max_steps?"),
        ("trian.max_steps=3", "trian is an unknown key; did you mean train?"),
        (
            "train.max_steps.x=3",
            "train.max_steps must be a whole number of at least 1, or null; it is a mapping",
        ),
        ("train.max_steps=three", 'it is the text "three"'),
        ("train=3", "train must be a section"),
        ("parallel=auto", "auto is a value of parallel.layout, parallel.zero_stage, parallel.engine and"),
        ("data.sources.7.weight=1", 'data.sources is a list of 2 entries, numbered from 0; there is no "7"'),
        ("data.sources.-1.weight=1", 'there is no "-1"'),
        ("data.sources.first.weight=1", 'there is no "first"'),
        ("data.sources.0=3", "data.sources.0 must be a section"),
        ("run.name=7", """put quotes around it: '"7"'"""),
        ("run.name=a: b", """put quotes around it: '"a: b"'"""),
        ("run.name=It's: b", """put quotes around it: '"It'"'"'s: b"'"""),
        ('run.name=a "b": c', r"""put quotes around it: '"a \"b\": c"'"""),
        ("run.name=[a", "not valid YAML"),
        ("data.sources=[{type:", "close what is opened, and put the whole override into single quotes"),
        ("run.name=\udcff", "the value holds the byte 0xff, which is no UTF-8"),
        ("run.name=\ud800", "control character"),
        ("run.name=a\x00b", "control character"),
    ],
)
def test_a_wrong_override_is_named(override: str, what: str, base: str, refused: Refused) -> None:
    message = refused(base, override)
    assert "1 mistake" in message
    assert "  command line: " in message
    assert what in message


def test_an_empty_section_is_the_same_as_none(write: Write, base: str) -> None:
    text = base.replace("evaluate:\n  every_steps: 50", "evaluate:\nkernels:  # nothing")
    assert load(write(text)).config.evaluate.every_steps == 0


def test_a_file_lies_over_what_it_extends(write: Write, base: str) -> None:
    write(base, "base.yaml")
    write("model: {hidden_size: 128, norm: layernorm}\ntrain: {max_steps: 400}\n", "models/wide.yaml")
    top = "extends: [base.yaml, models/wide.yaml]\ntrain:\n  max_steps: 500\n"
    top += "data:\n  sources: [{type: stdlib}]\n"
    loaded = load(write(top, "top.yaml"), ["run.seed=9"])
    config, origins = loaded.config, loaded.origins
    assert config.model.hidden_size == 128, "a later file of the list wins"
    assert config.model.num_attention_heads == 4, "mappings merge"
    assert config.train.max_steps == 500, "the file wins over what it extends"
    assert len(config.data.sources) == 1, "lists are replaced whole"
    assert config.run.seed == 9
    assert origins["model.hidden_size"] == "models/wide.yaml:1"
    assert origins["model.num_attention_heads"] == "base.yaml:7"
    assert origins["train.max_steps"] == "top.yaml:3"


def test_names_after_extends_are_relative_to_their_file(write: Write, base: str) -> None:
    write(base, "shared/base.yaml")
    write("extends: ../shared/base.yaml\n", "recipes/middle.yaml")
    loaded = load(write("extends: recipes/middle.yaml\nrun: {seed: 3}\n", "top.yaml"))
    assert loaded.origins["run.name"] == "shared/base.yaml:2"


def test_a_file_may_be_extended_twice_on_different_ways(write: Write, base: str) -> None:
    write(base, "base.yaml")
    write("extends: base.yaml\nrun: {seed: 3}\n", "a.yaml")
    write("extends: base.yaml\nrun: {name: b}\n", "b.yaml")
    config = load(write("extends: [a.yaml, b.yaml]\n", "top.yaml")).config
    assert (config.run.name, config.run.seed) == ("b", 1)


@pytest.mark.parametrize("value", ["5", "[1]", "{a: b}", "null", "''"])
def test_extends_takes_names_only(value: str, base: str, refused: Refused) -> None:
    assert "c.yaml:34: extends must be the name of a file" in refused(f"{base}extends: {value}\n")


def test_a_missing_extended_file_is_named_with_the_line_that_asks_for_it(base: str, refused: Refused) -> None:
    message = refused(f"{base}extends: [models/gpt.yaml, ../x.yaml]\n")
    assert "c.yaml:34: extends: there is no file models/gpt.yaml" in message
    assert "c.yaml:34: extends: there is no file ../x.yaml" in message


def test_a_circle_is_refused(write: Write, refused: Refused) -> None:
    write("extends: c.yaml\n", "b.yaml")
    assert (
        "b.yaml:1: extends: the files extend each other in a circle: c.yaml -> b.yaml -> c.yaml"
        in refused("extends: b.yaml\n")
    )
    assert "in a circle: c.yaml -> c.yaml" in refused("extends: ./c.yaml\n")


def test_a_long_chain_is_refused(write: Write, base: str, refused: Refused) -> None:
    write(base, "0.yaml")
    for number in range(MAX_EXTENDS + 1):
        write(f"extends: {number}.yaml\n", f"{number + 1}.yaml")
    assert "files extend each other in a row" in refused(f"extends: {MAX_EXTENDS}.yaml\n")
    assert load(f"{MAX_EXTENDS}.yaml").config.run.name == "demo"


def test_a_fan_of_files_is_refused_before_it_explodes(write: Write, base: str, refused: Refused) -> None:
    write(base, "0.yaml")
    for number in range(6):
        write(f"extends: [{', '.join([f'{number}.yaml'] * 20)}]\n", f"{number + 1}.yaml")
    assert "files are read in all" in refused("extends: 6.yaml\n")


def test_mistakes_in_an_extended_file_are_named_there(write: Write, base: str, refused: Refused) -> None:
    write("model: {hiden_size: 3}\nmodel: {}\n", "part.yaml")
    message = refused(f"{base}extends: part.yaml\nruns: {{}}\n", "train.max_steps=x")
    assert "part.yaml:1: model.hiden_size is an unknown key" in message
    assert 'part.yaml:2: "model" is given twice' in message
    assert "c.yaml:35: runs is an unknown key" in message
    assert "command line: train.max_steps=x" in message


def test_a_missing_file_is_one_readable_line() -> None:
    with pytest.raises(UserError) as refusal:
        load("configs/nothing.yaml")
    assert str(refusal.value).splitlines()[1] == "  configs/nothing.yaml: there is no such file"


def test_a_file_with_a_similar_name_is_named(write: Write, base: str, refused: Refused) -> None:
    write(base, "base.yaml")
    with pytest.raises(UserError, match=r"bsae\.yaml: there is no such file; did you mean base\.yaml\?"):
        load("bsae.yaml")
    message = refused("extends: base.yml\n")
    assert "c.yaml:1: extends: there is no file base.yml (names are relative to this file)" in message
    assert "did you mean base.yaml?" in message


def test_an_override_in_the_place_of_the_configuration_is_named(write: Write) -> None:
    with pytest.raises(UserError, match="the configuration comes before the overrides"):
        load("train.max_steps=3", [write()])


def test_a_folder_in_the_place_of_a_file_is_named_where_it_stands(
    write: Write, base: str, refused: Refused
) -> None:
    write(base, "runs/one/config.yaml")
    with pytest.raises(
        UserError, match=r"no file but a folder; name a configuration in it: runs/one/config\.yaml"
    ):
        load("runs/one")
    assert "c.yaml:1: extends: runs/one is no file but a folder" in refused("extends: runs/one\n")


def test_home_is_expanded_in_extends(
    write: Write, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(base, str(tmp_path / "home/base.yaml"))
    assert load(write("extends: ~/base.yaml\n")).config.train.global_batch_size > 0


def test_loading_needs_no_heavy_import(write: Write) -> None:
    write()
    code = (
        "import sys; from llmkit.config import load, show, resume;"
        "from llmkit.plan import resolve_plan, text;"
        "loaded = load.load('c.yaml'); show.show(loaded, text.show_plan(resolve_plan(loaded)));"
        "print([m for m in ('torch', 'numpy', 'tokenizers', 'wandb', 'transformers') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "[]"
