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
