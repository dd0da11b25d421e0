"""The script of a job: what is written into it, and that nothing in it is taken for a command."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import string
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.cluster.fields import option_line
from llmkit.cluster.options import add_submit_options
from llmkit.cluster.request import read_request, wrong_arguments
from llmkit.cluster.script import MARK, render, script_variables, shown_part, template
from llmkit.errors import UserError

Measured = Callable[[str, float | str, str], None]

ROOT = Path(__file__).parents[2]
SMALL = f"""\
#!/bin/bash
# A comment.
#SBATCH --job-name=llmkit
#SBATCH --nodes=2
#SBATCH --mem=0
# Another one.
#SBATCH --signal=B:USR1@120

say() {{ echo "$*" >&2; }}

{MARK}

printf '%s\\0' "$@"
"""


def arguments_of(script: str, folder: Path, *further: str, **variables: str) -> list[str]:
    """The arguments that the commands of a script are left with."""
    shell = shutil.which("bash") or "bash"
    done = subprocess.run(
        [shell, "-s", "--", *further],
        input=script.encode(),
        capture_output=True,
        cwd=folder,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
    )
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


def test_options_take_the_lines_of_the_template_or_new_ones() -> None:
    options = {"nodes": "4", "signal": "B:USR1@300", "qos": "long", "comment": "llmkit /a b", "reboot": None}
    lines = render(SMALL, options, removed=["mem"], arguments=["x.yaml"]).splitlines()
    assert lines[:9] == [
        "#!/bin/bash",
        "# A comment.",
        "#SBATCH --job-name=llmkit",
        "#SBATCH --nodes=4",
        "#SBATCH --qos=long",
        '#SBATCH --comment="llmkit /a b"',
        "#SBATCH --reboot",
        "# Another one.",
        "#SBATCH --signal=B:USR1@300",
    ]


def test_arguments_of_a_task_follow_those_of_all_and_those_by_hand(tmp_path: Path) -> None:
    script = render(SMALL, {}, arguments=["my.yaml", "a=1"], tasks=[("b=2", "c=it's"), ("b=3", "c=4")])
    assert arguments_of(script, tmp_path, SLURM_ARRAY_TASK_ID="0") == ["my.yaml", "a=1", "b=2", "c=it's"]
    assert arguments_of(script, tmp_path, "d=5", SLURM_ARRAY_TASK_ID="1") == [
        "my.yaml",
        "a=1",
        "d=5",
        "b=3",
        "c=4",
    ]
    with pytest.raises(subprocess.CalledProcessError) as error:
        arguments_of(script, tmp_path)
    assert error.value.returncode == 2 and b"--array=0-1" in error.value.stderr


def test_the_template_takes_them() -> None:
    script = template()
    assert script == (ROOT / "slurm/train.sbatch").read_text() and script.count(MARK) == 1
    written = render(script, {"nodes": "3"}, variables={"PYTHON": "/a b/python"}, arguments=["my.yaml"])
    assert "#SBATCH --nodes=3\n" in written and "#SBATCH --nodes=2" not in written
    assert f"{MARK}\nexport PYTHON='/a b/python'\nset -- my.yaml \"$@\"\n\n" in written
    assert shown_part(written).endswith('set -- my.yaml "$@"') and "say()" not in shown_part(written)
    assert {"PYTHON", "PROCESSES_PER_NODE", "END_SECONDS"} <= set(script_variables(script))


def test_an_installed_package_has_the_template() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "cluster/train.sbatch" in packages["package-data"]["llmkit"]


HOSTILE = (
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    "\n#SBATCH --wrap=x\n",
    "\n",
    "\0",
    "\r",
    "\x1b[2J",
    "$HOME",
    "${PATH}",
    "\\",
    "'",
    '"',
    "#",
    "*",
    "~",
    "!",
    "&",
    "|",
    ";",
    "<(touch canary)",
    ">canary",
    ",ALL",
    "%N",
    " ",
    "\t",
    "ä",
    "中",
    "\u2028",
    "\x85",
    "\udcff",
    "hetjob",
    "packjob",
    "--wrap=x",
    "esac",
    ";;",
)


def hostile_texts(count: int) -> list[str]:
    """Texts of hostile parts and of letters, always the same ones."""
    draw = random.Random(36)
    return [
        "".join(draw.choice(HOSTILE if draw.random() < 0.6 else string.printable) for _ in range(length))
        for length in (draw.randrange(1, 9) for _ in range(count))
    ]


@pytest.mark.drill(
    "D36",
    injection="1,500 generated texts with $(...), backticks, quotes, line breaks, NUL as overrides of a job",
    expected="refused, or they arrive as they are; nothing is executed",
)
def test_hostile_texts_are_refused_or_arrive_as_they_are(tmp_path: Path, measured: Measured) -> None:
    texts = hostile_texts(1500)
    taken = [text for text in texts if not list(wrong_arguments([text]))]
    assert 300 < len(taken) < 1400  # both are tried
    assert not any(letter in text for text in taken for letter in "\n\r\0\x1b\u2028\x85\udcff")
    script = render(
        SMALL,
        {"comment": taken[0]},
        variables={f"V{i}": text for i, text in enumerate(taken)},
        arguments=taken,
        tasks=[taken, taken[:1]],
    )
    printing = "".join(f'printf "%s\\0" "$V{i}"\n' for i in range(len(taken)))
    assert arguments_of(script + printing, tmp_path, SLURM_ARRAY_TASK_ID="0") == taken * 3
    executed = list(tmp_path.iterdir())
    measured("texts", len(texts), "")
    measured("refused", len(texts) - len(taken), "")
    measured("executed", len(executed), "")
    assert executed == []


@pytest.mark.drill(
    "D36",
    injection="120 generated texts for each option of llmkit submit",
    expected="refused by name, or on a line of their own; nothing is executed",
)
def test_hostile_texts_in_each_option(tmp_path: Path, measured: Measured) -> None:
    parser = argparse.ArgumentParser()
    add_submit_options(parser)
    takes_text = [
        action.option_strings[0]
        for action in parser._actions
        if action.nargs != 0 and action.type is None and not action.choices and action.option_strings
    ]
    assert {"--job-name", "--time", "--array", "--pass-env", "--sbatch-option", "--container"} <= set(
        takes_text
    )
    given = ["x.yaml", "--gpus-per-node", "1", "--launcher", "accelerate", "--container", "image"]
    plain = len(written(parser, given, tmp_path).splitlines())
    tried = refused = 0
    for option in takes_text:
        for text in hostile_texts(120):
            value = f"--x={text}" if option == "--sbatch-option" else text
            try:
                script = written(parser, [*given, f"{option}={value}"], tmp_path)
            except UserError:
                refused += 1
            else:
                assert len(script.splitlines()) <= plain + 1
                assert arguments_of(script, tmp_path) == ["x.yaml"]
            tried += 1
    measured("texts", tried, "")
    measured("refused", refused, "")
    assert list(tmp_path.iterdir()) == []
    assert 0.5 * tried < refused < tried


def written(parser: argparse.ArgumentParser, arguments: list[str], folder: Path) -> str:
    """The script of a job. Raises UserError where it is refused."""
    options = parser.parse_args(arguments)
    request = read_request(options, SMALL, {"PATH": os.environ["PATH"], "HOME": str(folder)})
    if request.mistakes:
        raise UserError("; ".join(request.mistakes))
    return render(SMALL, request.options, request.removed, request.variables, [options.config])


def test_lines_of_options_hold_nothing_that_ends_them() -> None:
    for text in hostile_texts(1500):
        if not list(wrong_arguments([text])):
            line = option_line("comment", text)
            assert line.startswith("#SBATCH --comment=") and len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("LAUNCHER=mpirun", "LAUNCHER=mpirun: torchrun, accelerate or srun"),
        ("PREFLIGHT=yes", "PREFLIGHT=yes: on, strict or off"),
        ("MAX_STARTS=0", "MAX_STARTS=0: a whole number from 1 on"),
        ("MAX_STARTS=many", "MAX_STARTS=many: a whole number from 1 on"),
        ("", "usage: sbatch slurm/train.sbatch CONFIG [section.key=value ...] [--from=RUN@STEP]"),
    ],
)
def test_the_script_names_mistakes_in_its_variables(variable: str, message: str) -> None:
    name, _, value = variable.partition("=")
    command = ["bash", "slurm/train.sbatch", *(["mine.yaml"] if name else [])]
    environment = {"PATH": os.environ["PATH"], **({name: value} if name else {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.endswith(f": {message}\n")
