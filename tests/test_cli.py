"""The command line itself: quick, quiet about tracebacks, honest in its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmkit.cli import main
from llmkit.plan.operators import FORMS
from tests.limits import HANG
from tests.program import environment, make_project

HEAVY = (
    "torch",
    "numpy",
    "tokenizers",
    "wandb",
    "datasets",
    "transformers",
    "deepspeed",
    "accelerate",
    "pydantic",
    "triton",
)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\nfrom llmkit.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), text=True, capture_output=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr


def test_sampling_does_not_import_the_compiler():
    code = (
        "import sys, llmkit.generation.command, llmkit.inference\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian", "tiny.yaml"], "there is no 'trian'; did you mean train?"),
        (["data", "verfy", "tiny.yaml"], "there is no 'verfy'; did you mean verify?"),
        (["generate", "run", "--prompt", "x", "--precision", "fp23"], "did you mean fp32?"),
        (["train", "tiny.yaml", "--frehs"], "unknown arguments: --frehs; did you mean --fresh?"),
        (["evaluate", "run", "--date=x.txt"], "did you mean --data?"),
        (["train", "tiny.yaml", "--lr=3e-4"], "did you mean optimizer.learning_rate=3e-4?"),
        (["train", "tiny.yaml", "--max_iters", "5", "--quite"], "mean train.max_steps=5 --quiet?"),
        (["config", "tiny.yaml", "--warmup"], "did you mean schedule.warmup_steps=VALUE?"),
        (["config", "tiny.yaml", "--run.seed", "--keys"], "--run.seed has no value; write run.seed=VALUE"),
        (["dance"], "choose from train, new, config, plan, data, reference"),
    ],
)
def test_a_choice_that_does_not_exist_is_wrong_usage_and_the_nearest_is_named(arguments, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


def test_overrides_may_stand_behind_options(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny.yaml", "--fresh", "train.max_steps=x"]) == 2
    assert "train.max_steps" in capsys.readouterr().err
    assert main(["train", "tiny.yaml", "-train.max_steps=x"]) == 2
    assert "train.max_steps" in capsys.readouterr().err
    for wrong in (["train", "tiny.yaml", "--frehs"], ["generate", "run", "--prompt", "x", "y=3"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2


def test_settings_may_be_written_as_options(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = ["--run.seed=7", "--train.max_steps", "9", "--data.sources[0].weight", "2"]
    assert main(["config", "tiny.yaml", *given]) == 0
    printed = capsys.readouterr().out
    shown = [line.split()[:2] for line in printed.splitlines() if "# command line" in line]
    assert shown == [["seed:", "7"], ["weight:", "2.0"], ["max_steps:", "9"]]
    assert main(["config", *given, "tiny.yaml"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("arguments", [[], ["data"], ["checkpoint"]])
def test_a_command_alone_that_has_commands_below_it_shows_its_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown, wrong = capsys.readouterr()
    assert (stop.value.code, wrong if not arguments else shown) == (2 if arguments else 0, "")
    text = shown + wrong
    assert text.startswith("usage: llmkit") and ("train" if not arguments else "verify") in text


def test_config_finds_what_tensor_parallelism_does_not_divide(project, capsys):
    """Before anything is started: a batch script's preflight is this command."""
    assert main(["config", "tiny.yaml", "parallel.tensor_parallel_size=3", "parallel.world_size=4"]) == 2
    message = capsys.readouterr().err
    assert (
        "num_attention_heads" in message and "is not divisible by parallel.tensor_parallel_size 3" in message
    )
    assert "parallel.world_size 4 (command line) is not a multiple of" in message


def test_config_shows_each_value_with_its_origin_and_what_follows(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["config", "tiny.yaml", "train.max_steps=7"]) == 0
    printed = capsys.readouterr().out
    assert "max_steps: 7" in printed
    assert "# command line" in printed
    assert "# tiny.yaml:5" in printed
    assert "# default" in printed
    assert "tokens_per_step" in printed


def test_config_needs_a_file_or_keys(capsys):
    assert main(["config"]) == 2
    assert "--keys" in capsys.readouterr().err
    assert main(["config", "--keys"]) == 0
    assert "train.max_steps" in capsys.readouterr().out


def test_keys_shows_the_settings_and_sections_that_are_named(capsys):
    assert (
        main(["config", "--keys", "optimizer.learning_rate", "kernels.operators", "data.sources[0].weight"])
        == 0
    )
    shown = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith(" ")]
    assert shown == [
        "optimizer.learning_rate", "kernels.operators",
        *(f"kernels.operators.{operator}" for operator in FORMS), "data.sources.N.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "says"),
    [("lr", "did you mean optimizer.learning_rate?"), ("configs/no.yaml", "the sections are run, model,")],
)
def test_keys_of_what_is_no_setting_are_refused(name, says, capsys):
    assert main(["config", "--keys", name]) == 2
    message = capsys.readouterr().err
    assert f"{name} is no setting or section" in message
    assert says in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "build", "tiny.yaml", "--count", "3"],
        ["data", "verify", "tiny.yaml", "--color", "never"],
        ["config", "tiny.yaml", "--workers", "2"],
        ["evaluate", "run", "train.max_steps=3"],
        ["doctor", "tiny.yaml"],
    ],
)
def test_an_argument_that_a_command_does_not_use_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"llmkit {arguments[0]}" in capsys.readouterr().err


NUMBERS = {
    "--workers": ["data", "build", "tiny.yaml"],
    "--count": ["data", "inspect", "tiny.yaml"],
    "--max-new-tokens": ["generate", "run", "--prompt", "a"],
    "--top-k": ["generate", "run", "--prompt", "a"],
    "--seed": ["generate", "run", "--prompt", "a"],
}


@pytest.mark.parametrize("value", ["-1", "9" * 20, "9" * 5000, "x", "1.5", "1_0", ""])
@pytest.mark.parametrize("option", NUMBERS)
def test_whole_numbers_out_of_range_are_one_message(option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*NUMBERS[option], f"{option}={value}"])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and len(message) < 2000
    assert f"error: argument {option}: " in message and "is no whole number from " in message


@pytest.mark.parametrize("option", ["--max-new-tokens", "--workers"])
def test_none_is_too_few(option, capsys):
    with pytest.raises(SystemExit):
        main([*NUMBERS[option], option, "0"])
    assert f"argument {option}: '0' is no whole number from 1 to " in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--temperature", "--top-p", "--repetition-penalty"])
def test_numbers_out_of_range_are_one_message(option, capsys):
    for value in ("nan", "inf", "-inf", "1e999", "-1"):
        assert main(["generate", "run", "--prompt", "a", f"{option}={value}"]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"llmkit: {option[2:]} is ") and message.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "tiny.yaml", "--fresh", "--allow-data-change"],
        ["generate", "run", "--prompt", "x", "--temperature", "0", "--top-k", "3"],
        ["generate", "run", "--prompt", "x", "--temperature", "0", "--top-p", "0.9"],
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments, capsys):
    assert main(arguments) == 2
    assert "leave o" in capsys.readouterr().err


def test_json_of_a_command_that_has_none_is_refused(capsys):
    assert main(["data", "build", "tiny.yaml", "--json"]) == 2
    assert "data build: --json goes with --plan" in capsys.readouterr().err


def test_usage_asks_only_for_what_is_required(capsys):
    with pytest.raises(SystemExit):
        main(["train"])
    assert capsys.readouterr().err.splitlines() == [
        "llmkit train: error: the following arguments are required: CONFIG",
        "usage: llmkit train [options] CONFIG [section.key=value ...]",
        "llmkit train --help says more",
    ]


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    make_project(tmp_path)
    command = f"{sys.executable} -m llmkit config --keys | head -1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(), text=True, capture_output=True
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1


def test_a_prompt_that_is_no_text_is_refused(capsys):
    assert main(["generate", "run", "--prompt", "caf\udce9"]) == 2
    assert "--prompt holds bytes that are no UTF-8" in capsys.readouterr().err


def test_output_for_which_there_is_no_room_is_a_message():
    command = f"{sys.executable} -m llmkit config --keys > /dev/full"
    done = subprocess.run(command, shell=True, env=environment(), text=True, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == (
        "llmkit: no room to write: No space left on device; make room on that disk, or send the output to "
        "another one\n"
    )


def test_closed_standard_streams_are_not_given_to_other_files(tmp_path):
    script = (
        "import os, sys\nfrom llmkit.cli import main\nassert sys.stdout is None\n"
        "main(['config', '--keys', 'run.name'])\nprint('x', flush=True)\n"
        "assert {os.readlink(f'/proc/self/fd/{n}') for n in range(3)} == {'/dev/null'}\n"
        "assert os.open('/dev/zero', os.O_RDONLY) > 2\n"
        "open('passed', 'w').close()\n"
    )
    command = [*("sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-'), sys.executable, "-c", script]
    assert subprocess.run(command, env=environment(), cwd=tmp_path).returncode == 0
    assert (tmp_path / "passed").exists()


def test_a_reader_that_has_gone_is_no_fault_to_tell():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        command = [sys.executable, "-m", "llmkit", "completion", "bash"]  # less than a buffer holds
        ended = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, timeout=HANG)
    assert (ended.returncode, ended.stderr) == (1, b"")
