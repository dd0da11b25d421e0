"""The tasks of --array."""

from __future__ import annotations

import pytest

from llmkit.cluster.sweep import read_sweep, run_names, split_values


def test_tasks_are_all_combinations_and_the_last_setting_varies_fastest() -> None:
    sweep = read_sweep(["optimizer.learning_rate=1e-3,3e-4", "run.seed=1,2", "%2"])
    assert sweep.mistakes == () and sweep.spec() == "0-3%2"
    assert sweep.tasks == [
        ("optimizer.learning_rate=1e-3", "run.seed=1"),
        ("optimizer.learning_rate=1e-3", "run.seed=2"),
        ("optimizer.learning_rate=3e-4", "run.seed=1"),
        ("optimizer.learning_rate=3e-4", "run.seed=2"),
    ]
    assert read_sweep(["run.seed=1,2,3"]).spec() == "0-2"
    assert read_sweep([]).tasks == []


def test_names_say_what_varies_and_do_not_depend_on_the_other_values() -> None:
    words = ["optimizer.learning_rate=1e-3,3e-4", "run.seed=1,2", "train.max_steps=5"]
    names = run_names("demo", read_sweep(words))
    assert names[1] == "demo-learning_rate_1e-3-seed_2"
    more = run_names("demo", read_sweep([words[0] + ",1e-4", *words[1:]]))
    assert names == more[:4]
    assert run_names("demo", read_sweep(["run.seed=7"])) == ["demo-seed_7"]


def test_names_are_numbers_where_values_make_none() -> None:
    assert run_names("x", read_sweep(["data.path=a/b,a_b"])) == ["x-0", "x-1"]
    assert run_names("x", read_sweep([f"data.path={'a' * 70},b"])) == ["x-0", "x-1"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ["1", "2"]),
        ("[0.9,0.95],[0.9,0.99]", ["[0.9,0.95]", "[0.9,0.99]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("it's,x", ["it's", "x"]),
        ("['a,]',b],c", ["['a,]',b]", "c"]),
        ("", [""]),
    ],
)
def test_commas_in_brackets_and_quotes_do_not_part_values(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["seed"], "neither key=value,value"),
        (["run.seed=1,"], "is missing"),
        (["run.seed="], "is missing"),
        (["run.seed=1,1"], "is there twice"),
        (["run.seed=1", "run.seed=2"], "is there twice"),
        (["%2"], "only a limit"),
        (["%0"], "neither"),
        (["a.b=" + ",".join(map(str, range(40))), "c.d=" + ",".join(map(str, range(40)))], "1,600 tasks"),
    ],
)
def test_mistakes(words: list[str], what: str) -> None:
    assert what in read_sweep(words).mistakes[0]
