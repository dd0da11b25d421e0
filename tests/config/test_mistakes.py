"""How values and mistakes are shown: on one line, truncated, and nothing that is secret."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.mistakes import COMMAND_LINE, Mistake, display, error, listed, printable

Refused = Callable[..., str]


@pytest.mark.parametrize(
    "override",
    [
        "monitor.wandb.api_key=s3cr3tvalue",
        "monitor.wandb={api_key: s3cr3tvalue}",
        "wandb_key=s3cr3tvalue",
        "wandb_key=@s3cr3tvalue",
        "wandb_key s3cr3tvalue",
        "--hf-token=s3cr3tvalue",
        "monitor=hf_s3cr3tvalueABCDEFGH",
        "monitor=0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_shown(
    override: str, base: str, refused: Refused
) -> None:
    message = refused(base, override)
    assert "s3cr3tvalue" not in message
    assert "89abcdef" not in message


def test_a_flood_of_mistakes_is_counted_not_shown(base: str, refused: Refused) -> None:
    lines = refused(base + "".join(f"key{i}: 1\n" for i in range(1000))).splitlines()
    assert lines[0] == "c.yaml: 1000 mistakes"
    assert lines[-1] == "  ... and 970 more"
    assert len(lines) < 100


def test_mistakes_are_in_the_order_of_their_lines_and_each_is_told_once():
    places = ["b.yaml:3", f"{COMMAND_LINE}: x=1", "a.yaml:10", "a.yaml:9", "a.yaml:9"]
    message = str(error([Mistake(place, "it is wrong", "mend it") for place in places], "a run"))
    first, *lines = message.splitlines()
    assert first == "a run: 4 mistakes"
    assert [line.strip().removesuffix(": it is wrong") for line in lines[::2]] == [
        "a.yaml:9", "a.yaml:10", "b.yaml:3", f"{COMMAND_LINE}: x=1",
    ]  # fmt: skip
    assert set(lines[1::2]) == {"      mend it"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (False, "false"),
        (3, "3"),
        (1e-3, "0.001"),
        (float("inf"), ".inf"),
        (float("-inf"), "-.inf"),
        (float("nan"), ".nan"),
        ("two\nlines", r'"two\nlines"'),
        ({"a": 1}, "a mapping"),
        ([1, "a", None], '[1, "a", null]'),
        ("hf_abcdefghijklmnopqrstuvwxyz", "a text that looks like a key (not shown)"),
        ("https://user:word@host/x", "a URL that gives access (not shown)"),
    ],
)
def test_a_value_is_shown_as_yaml_writes_it(value, shown):
    assert display(value) == shown


def test_what_is_long_is_truncated():
    assert printable("a" * 200) == "a" * 200
    assert printable("a" * 201) == "a" * 197 + "..."
    assert len(display(list(range(1000)))) <= 60
    assert printable("\x1b[31mred") == r"\x1b[31mred"


def test_names_are_listed():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcde"), most=2) == "a, b and 3 more"
