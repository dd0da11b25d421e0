"""A file is read by the YAML 1.2 core schema, and a hostile one is refused before it can do harm."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.file_text import MAX_BYTES, UnreadableError
from llmkit.config.tree import Node, find, location_of
from llmkit.config.yaml_reader import MAX_DEPTH, read_file, read_value, resolve

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e+3", -500.0),
        ("+12", 12),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("tRue", "tRue"),
        ("1e", "1e"),
        (".", "."),
        ("٣", "٣"),
        ("inf", "inf"),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(resolve(".nan"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["9223372036854775808", "-9223372036854775809", "9" * 5000, "0x" + "f" * 100]
)
def test_integers_beyond_64_bits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        resolve(text)


def test_quoted_scalars_are_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: '1'\nb: \"null\"\nc: |\n  true\n")
    tree = read_file(path, "c.yaml", [])
    assert tree is not None
    assert tree.plain() == {"a": "1", "b": "null", "c": "true\n"}


def test_every_value_knows_the_line_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a:\n  b:\n\n    5\n  c:\n  - 1\n  - 2\n")
    tree = read_file(path, "c.yaml", [])
    assert tree is not None
    locations = {path: location_of(tree, path) for path in [("a",), ("a", "b"), ("a", "c", 0), ("a", "c", 1)]}
    assert [location.partition(":")[2] for location in locations.values()] == ["1", "2", "6", "7"]
    assert find(tree, ("a", "b")) == Node(5, "c.yaml:2")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    tree = read_file(path, "c.yaml", [])
    assert tree is not None
    assert tree.plain() == {"a": 1, "b": 2}


BOMB = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [*{p}, *{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE: dict[str, tuple[str | bytes, str, str]] = {
    "alias bomb": (BOMB, "c.yaml:2", "aliases (*a) are not supported"),
    "anchor": ("run: &x {name: a}\n", "c.yaml:1", "anchors (&x) are not supported"),
    "merge key": ("<<: {run: 1}\n", "c.yaml:1", "merge keys (<<) are not supported"),
    "python object": (
        "run: !!python/object/apply:os.system [id]\n",
        "c.yaml:1",
        "tags (tag:yaml.org,2002:python/obj",
    ),
    "string tag": ("run:\n  name: !!str 5\n", "c.yaml:2", "tags (tag:yaml.org,2002:str) are not supported"),
    "local tag": ("run: !x {}\n", "c.yaml:1", "tags (!x)"),
    "tag directive": ("%TAG ! tag:x,2000:\n---\nrun: !a {}\n", "c.yaml:3", "tags (tag:x,2000:a)"),
    "two documents": ("run: {}\n---\nrun: {}\n", "c.yaml:2", "another document (a file holds one)"),
    "duplicate key": (
        "run:\n  seed: 1\n  name: a\n  seed: 2\n",
        "c.yaml:4",
        '"seed" is given twice, first in line 2',
    ),
    "duplicate section": (
        "run: {}\ndata: {}\nrun: {}\n",
        "c.yaml:3",
        '"run" is given twice, first in line 1',
    ),
    "number as key": ("run: {}\n5: 1\n", "c.yaml:2", "a key must be text, not 5"),
    "null as key": ("run: {}\n~: 1\n", "c.yaml:2", "a key must be text, not ~"),
    "list as key": ("? [a, b]\n: 1\n", "c.yaml:1", "a key must be text, not a mapping or list"),
    "flow nesting": ("run: " + "[" * 200_000, "c.yaml:1", f"nested more than {MAX_DEPTH} levels"),
    "mapping nesting": ("run: " + "{a: " * 1000, "c.yaml:1", f"nested more than {MAX_DEPTH} levels"),
    "block nesting": ("- " * 200_000, "c.yaml:1", f"nested more than {MAX_DEPTH} levels"),
    "too big": (b"#" * (MAX_BYTES + 1), "c.yaml", "larger than 1 MiB"),
    "too many values": ("run: [" + "1," * 300_000 + "]", "c.yaml:1", "more than 20000 values"),
    "no UTF-8": (b"run: {}\n# caf\xe9\n", "c.yaml:2", "the byte 0xe9 is no UTF-8"),
    "UTF-16": ("run: {}".encode("utf-16"), "c.yaml:1", "is no UTF-8"),
    "NUL": ("run: {}\n\0", "c.yaml:2", "control character '\\x00'"),
    "escape code": ("run: \x1b[31m\n", "c.yaml:1", "control character '\\x1b'"),
    "surrogate": ('run:\n  name: "\\ud800"\n', "c.yaml:2", "a surrogate"),
    "escape too large": ('run: "\\UFFFFFFFF"\n', "c.yaml:1", "not valid YAML"),
    "empty": ("", "c.yaml:1", "the file is empty"),
    "only comments": ("# nothing\n", "c.yaml:1", "the file is empty"),
    "a list": ("- run\n", "c.yaml:1", "no mapping"),
    "a word": ("run\n", "c.yaml:1", "no mapping"),
    "tab": ("run:\n\tname: a\n", "c.yaml:2", "indent with spaces, not tabs"),
    "open bracket": ("run: {}\ndata: [1, 2\n", "c.yaml:3", "not valid YAML: expected ',' or ']'"),
    "colon in text": ("run: {}\nmonitor: a: b\n", "c.yaml:2", "a text with a colon that needs quotes"),
    "open quote": ("run: 'a\n", "c.yaml:2", "not valid YAML"),
    "undefined tag handle": ("run: !e!x 1\n", "c.yaml:1", "not valid YAML"),
}


@pytest.mark.drill(
    "D36",
    injection=f"{len(HOSTILE)} hostile files: bombs, tags, anchors, keys twice, nesting, NUL, 1 MiB and more",
    expected="refused, with the line",
)
@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_plain_configuration_is_refused_with_its_line(case: str, refused: Refused) -> None:
    text, location, what = HOSTILE[case]
    lines = refused(text).splitlines()
    assert any(line.startswith(f"  {location}: ") and what in line for line in lines), lines


@pytest.mark.parametrize("text", [BOMB, "run: " + "[" * 200_000, "k: [" + "1," * 300_000])
def test_a_hostile_file_takes_little_memory(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    tracemalloc.start()
    assert read_file(path, "c.yaml", []) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20


def test_several_faults_of_form_are_reported_together(refused: Refused) -> None:
    message = refused("run: &a {seed: 1, seed: 2}\n1: 2\nmodel: !!map {}\n")
    for what in ("anchors (&a)", '"seed" is given twice', "a key must be text, not 1", "tags ("):
        assert what in message


@given(st.text(max_size=60))
def test_any_text_as_an_override_is_a_value_or_refused(text: str) -> None:
    try:
        location = read_value(text, "command line: x").location
    except UnreadableError as stop:
        location = stop.mistake.location
    assert location == "command line: x"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("3", 3),
        ("1e-3", 1e-3),
        ("'3'", "3"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: ~}}", {"a": {"b": None}}),
    ],
)
def test_an_override_is_a_scalar_or_a_flow_value(text: str, value: object) -> None:
    assert read_value(text, "x").plain() == value


@pytest.mark.parametrize(
    "text", ["a: b", "- a", "a #b", "# b", "|", "--- a", "a\nb", "&x a", "*x", "!!str a", "[a", "@"]
)
def test_an_override_that_yaml_reads_as_something_else_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_value(text, "x")
