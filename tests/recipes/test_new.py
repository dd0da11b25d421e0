"""`llmkit new`: every file it writes is a valid configuration that says why; bad input is one message."""

from __future__ import annotations

import re
import shlex

import pytest

from llmkit.cli import main
from llmkit.config.load import load
from llmkit.plan import resolve_plan
from tests.access import closed_to_this_user


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(line: str) -> int:
    return main(["new", *shlex.split(line)])


@pytest.mark.parametrize(
    "dial",
    [
        "--depth 1", "--depth 4", "--depth 12", "--depth 26", "--params 350k", "--params 124m", "--params 1b",
        "--flops 1e15", "--flops 1e19", "--hours 4 --device h100", "--hours 24 --device h100 --gpus 64",
        "--depth 12 --tokenizer bytes --sequence-length 512", "--depth 30 --device rtx-4090 --gpus 8",
        "--depth 6 --data HuggingFaceFW/fineweb-edu",
    ],
)  # fmt: skip
def test_what_is_written_is_a_configuration_without_remarks(here, capsys, dial):
    assert new(f"run {dial}") == 0
    loaded = load("run.yaml")
    assert resolve_plan(loaded)
    assert loaded.remarks == ()
    assert loaded.config.run.name == "run"
    text = (here / "run.yaml").read_text()
    assert f"`llmkit new run {dial.split()[0]} " in text.replace("\n# ", " ")
    assert max(map(len, text.splitlines())) <= 110
    assert capsys.readouterr().out.startswith("./run.yaml: ")


def test_numbers_that_follow_from_the_size_say_how(here):
    assert new("run --depth 12") == 0
    lines = (here / "run.yaml").read_text().splitlines()
    for key in (
        "hidden_size", "num_attention_heads", "qk_norm", "vocab_size", "sequence_length", "max_steps",
        "global_batch_size", "learning_rate", "weight_decay", "warmup_steps",
    ):  # fmt: skip
        line = next(line for line in lines if line.strip().startswith(f"{key}:"))
        assert "  # " in line, line


def test_text_that_was_given_is_not_said_to_follow_from_the_width(here):
    assert new("run --depth 4 --tokenizer bpe:600 --sequence-length 96 --ladder") == 0
    for file in ("rung-1", "target"):
        text = (here / f"run/{file}.yaml").read_text()
        for key in ("vocab_size", "sequence_length"):
            (line,) = re.findall(rf"^ +{key}: .*", text, re.MULTILINE)
            assert "# as the command gave it" in line
    assert new("plain --depth 2") == 0
    assert "as the command gave it" not in (here / "plain.yaml").read_text()


@pytest.mark.parametrize("dial", ["--params 123456789", "--hours 0.1 --device H100", "--flops 1.5e18"])
def test_the_command_in_the_file_writes_the_same_again(here, dial):
    assert new(f"run {dial}") == 0
    written = (here / "run.yaml").read_text()
    command = re.search("`llmkit new ([^`]+)`", written.replace("\n# ", " "))
    assert command and new(f"{command[1]} --force") == 0
    assert (here / "run.yaml").read_text() == written


def test_hours_of_a_device_become_tokens(here, capsys):
    assert new("short --hours 1 --device h100") == 0
    assert new("long --hours 8 --device h100") == 0
    assert new("many --hours 1 --device h100 --gpus 8") == 0
    steps = {name: load(f"{name}.yaml").config for name in ("short", "long", "many")}
    assert steps["long"].model == steps["many"].model != steps["short"].model
    assert steps["long"].train == steps["many"].train
    assert "about 1 h at 40%" in capsys.readouterr().out


def test_a_ladder_is_four_sizes_below_the_target_alike_in_text(here):
    assert new("tiny --flops 1e15 --tokenizer bpe:512 --ladder") == 0
    files = sorted((here / "tiny").iterdir())
    assert [file.name for file in files] == [*(f"rung-{n}.yaml" for n in range(1, 5)), "target.yaml"]
    configs = [load(file).config for file in files]
    assert [config.run.name for config in configs] == [*(f"tiny-rung-{n}" for n in range(1, 5)), "tiny"]
    assert all(config.data == configs[-1].data for config in configs)
    widths = [config.model.hidden_size for config in configs]
    assert widths == sorted(widths) and widths[0] < widths[-1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run --depth 0", "--depth is 0; it must be from 1 to 128"),
        ("run --depth 4 --device h1000", "--device 'h1000' is not known"),
        ("run --hours 4", "--hours needs --device"),
        ("../run --depth 4", "cannot be the name of a run"),
        ("/tmp/run --depth 4", "cannot be the name of a run"),
        (".yaml --depth 4", "cannot be the name of a run"),
        (f"{'x' * 70} --depth 4", "cannot be the name of a run"),
        ("run --depth 4 --gpus 0", "--gpus is 0"),
        ("run --depth 4 --sequence-length 1", "--sequence-length is 1"),
        ("run --depth 1 --sequence-length 1000000", "run: its .* tokens are . steps of one row"),
        ("run --depth 4 --gpus 1024", "run: its best batch has [0-9]+ rows, too few for 1024"),
        ("run --depth 12 --gpus 100 --ladder", "run-rung-1: its best batch has [0-9]+ rows, too few for 100"),
        ("run --depth 4 --out /dev/null", "--out /dev/null: there is no such folder"),
        ("run --depth 4 --tokenizer bpe:99999999", "a bpe tokenizer has from 257 to 16,777,216 tokens"),
        ("run --params 1", "the smallest model of this family has .*: ask for more"),
        ("run --params 1e15", "the largest model of this family has .*: ask for less"),
        ("run --depth 4 --out missing", "--out missing: there is no such folder"),
        ("run --depth 4 --data missing.txt", "there is no such file or folder"),
        ("run --depth 4 --tokenizer missing.json/x/y", "there is no such file"),
        ("run --depth 100 --device rtx-3090", "does not fit: a process needs"),
        ("run --depth 64 --device l4 --gpus 8 --ladder", "run, of .*M parameters, does not fit"),
        ("run --depth 1 --ladder", "--ladder"),
        (f"{'x' * 60} --flops 1e16 --ladder", "cannot be the name of a run"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(here, capsys, line, says):
    assert new(line) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("llmkit: new: ") and captured.err.count("\n") == 1
    assert re.search(says, captured.err), captured.err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    ["run", "--depth 4", "run --depth 4 --params 1b", "run --depth x", "run --params 1g", "-run --depth 4"],
)
def test_wrong_usage_is_told_by_the_command_line(here, line):
    with pytest.raises(SystemExit) as stop:
        new(line)
    assert stop.value.code == 2
    assert list(here.iterdir()) == []


def test_a_file_is_only_replaced_when_asked(here, capsys):
    (here / "run.yaml").write_text("mine\n")
    assert new("run --depth 4") == 2
    assert (
        "run.yaml is there already; choose another name, or replace it with --force"
        in capsys.readouterr().err
    )
    assert (here / "run.yaml").read_text() == "mine\n"
    assert new("run --depth 4 --force") == 0
    assert load("run.yaml").config.model.num_hidden_layers == 4


def test_a_folder_that_cannot_be_written_is_named(here, capsys):
    (here / "closed").mkdir()
    with closed_to_this_user(here / "closed", 0o555):
        assert new("run --depth 4 --out closed") == 2
    assert "cannot be written: Permission denied" in capsys.readouterr().err
