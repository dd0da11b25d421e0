"""All mistakes of a configuration at once, and none that only follows from another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Refused = Callable[..., str]


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(base: str, refused: Refused) -> None:
    text = base
    for old, new in (
        ("seed: 1", "seed: one"),
        ("hidden_size: 64", "hidden_size: 66"),
        ("max_steps", "max_step"),
        ("optimizer:", "optimizr:"),
        ("learning_rate", "learning_rat"),
        ("mode: disabled", "mode: never"),
    ):
        text = text.replace(old, new, 1)
    lines = refused(text, "train.max_minutes=soon", "nonsense", "evaluate.early_stopping=0").splitlines()
    places = [line.split(": ")[0].strip() for line in lines if not line.startswith("      ")]
    numbers = [int(place.removeprefix("c.yaml:")) for place in places if place.startswith("c.yaml:")]
    assert numbers == [3, 5, 20, 23, 24, 33]
    assert places[1 + len(numbers) :] == ["command line"] * 3


def test_a_misnamed_section_is_judged_under_its_right_name(base: str, refused: Refused) -> None:
    message = refused(base.replace("optimizer:", "optimiser:").replace("1e-3", "fast"))
    assert "optimiser is an unknown key" in message
    assert 'optimizer.learning_rate must be a number above 0 and at most 10; it is the text "fast"' in message


def test_a_misnamed_required_section_is_not_called_missing(base: str, refused: Refused) -> None:
    message = refused(base.replace("\ndata:", "\nData:"))
    assert "did you mean data?" in message
    assert "required" not in message


def test_a_wrong_value_takes_part_in_no_other_check(base: str, refused: Refused) -> None:
    message = refused(base.replace("num_attention_heads: 4", "num_attention_heads: four"))
    assert message.splitlines()[0] == "c.yaml: 1 mistake"


@pytest.mark.parametrize(
    "text", ["run: {name: a}\n", "run: {name: a}\ndata:\n", "run: {name: a}\ndata: {}\n"]
)
def test_missing_sources_are_named(text: str, refused: Refused) -> None:
    message = refused(text, "train.max_steps=1000")
    line = 1 if "data" not in text else 2
    assert f"c.yaml:{line}: data.sources is required" in message
    assert "1 mistake" in message


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("optimizer.groups=[null]", "optimizer.groups.0 must be a section (a mapping of keys); it is null"),
        ("monitor.sinks=[{type: tensorboard}, [3]]", "monitor.sinks.1 must be a section"),
        ("optimizer.groups=[{params: x}]", "optimizer.groups.0.params must be a list of texts"),
        ("optimizer.groups=[{learning_rate: 0.1}]", "optimizer.groups.0.params is required"),
    ],
)
def test_a_wrong_entry_of_a_list_is_one_mistake(
    override: str, what: str, refused_for_one: Callable[[list[str], str], None]
) -> None:
    refused_for_one([override], what)


def test_each_wrong_entry_of_a_list_is_named(base: str, refused: Refused) -> None:
    groups = "[null, {params: 3}, {params: [norm.weight], eps: 0}, {params: [norm.weight]}]"
    message = refused(base, f"optimizer.groups={groups}", "train.max_steps=0")
    assert "4 mistakes" in message
    for what in ("groups.0 must be a section", "groups.1.params must", "groups.2.eps must", "max_steps must"):
        assert what in message
    assert "is required" not in message
