"""Options of sbatch: their forms, and how they stand in a script."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.cluster.fields import (
    FIELDS,
    JOB_NAME,
    further_options,
    option_line,
    unfit_for_scripts,
    wrong_value,
)

BY_NAME = {field.name: field for field in FIELDS}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time", "90"),
        ("time", "24:00:00"),
        ("time", "2-12"),
        ("time", "1-02:03:04"),
        ("partition", "gpu,long"),
        ("account", "lab-7.x"),
        ("exclude", "n[1,3-5],m7"),
        ("mem", "200G"),
        ("mem", "0"),
        ("cpus-per-task", "16"),
        ("dependency", "singleton"),
        ("dependency", "afterok:12:13_4,afterany:9_*"),
        ("dependency", "after:12+5?singleton"),
    ],
)
def test_forms_that_sbatch_takes(name: str, value: str) -> None:
    assert wrong_value(BY_NAME[name], value) is None


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize(
    "value", ["", "a b", "x\n#SBATCH --wrap=y", "$(touch x)", "`x`", "a;b", '"', "a\0b", "--wrap"]
)
def test_other_values_are_refused_by_name(name: str, value: str) -> None:
    assert f"--{name}: " in str(wrong_value(BY_NAME[name], value))


def test_job_names() -> None:
    assert JOB_NAME.fullmatch("gpt-1.3b_run") and JOB_NAME.fullmatch("a" * 64)
    assert not any(map(JOB_NAME.fullmatch, ["", "a" * 65, "a b", "a\n", "$(x)", "ä", "a/b"]))


def test_further_options_leave_alone_what_is_decided() -> None:
    words = ["--licenses=a@b:2", "--exclusive=user", "--reboot", "--gres=gpu:h100:8"]
    assert [(name, value, wrong) for name, value, wrong in further_options(words) if wrong is None] == [
        ("licenses", "a@b:2", None),
        ("exclusive", "user", None),
        ("reboot", None, None),
        ("gres", "gpu:h100:8", None),
    ]
    refused = [
        "--export=ALL,A=b",
        "--exp=ALL",
        "--wrap=touch",
        "--wra=x",
        "--array=1",
        "licenses=x",
        "-p x",
        "--x=a\nb",
        "",
    ]
    assert all(wrong for _, _, wrong in further_options(refused))


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_what_may_stand_on_a_line_stands_on_one(text: str) -> None:
    if unfit_for_scripts(text) is None:
        assert len(f"a{text}b".splitlines()) == 1
        text.encode()


def test_lines_are_quoted_only_where_they_must_be() -> None:
    assert option_line("time", "24:00:00") == "#SBATCH --time=24:00:00"
    assert option_line("exclusive", None) == "#SBATCH --exclusive"
    assert option_line("comment", 'a "b" #c\\d') == '#SBATCH --comment="a \\"b\\" #c\\\\d"'


@settings(max_examples=200, deadline=None)
@given(st.text().filter(lambda text: unfit_for_scripts(text) is None))
def test_a_line_is_one_word_of_a_posix_shell(text: str) -> None:
    words = shlex.split(option_line("comment", text).removeprefix("#SBATCH "))
    assert [word.replace("\\", "") for word in words] == ["--comment=" + text.replace("\\", "")]
