"""Which settings may change when a run goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmkit.config.keys import keys
from llmkit.config.resume import RULES, classify, compare
from llmkit.config.schema import Config, Data, Source
from llmkit.errors import UserError

FIXED = {"run.seed", "data.sequence_length", "data.heldout_every", "data.document_masks", "data.errors"}
WARNED = {
    "train.global_batch_size",
    "train.gradient_clipping",
    "train.precision",
    "data.sources.N.weight",
}
FREE = {
    "run.name",
    "run.dir",
    "run.deterministic",
    "data.cache_dir",
    "data.sources.N.path",
    "data.tokenizer.path",
    "train.max_steps",
    "train.max_minutes",
    "train.micro_batch_size",
    "train.max_nonfinite_steps",
}
FREE_SECTIONS = {"parallel", "kernels", "checkpoint", "evaluate", "monitor"}


def dump() -> dict[str, Any]:
    """A resolved config as a checkpoint holds it."""
    config = Config(data=Data(sources=[Source(type="stdlib"), Source(type="text", path="a")]))
    dumped: dict[str, Any] = json.loads(json.dumps(config.model_dump(mode="json")))
    return dumped


def with_value(path: str, value: object) -> dict[str, Any]:
    changed = dump()
    *sections, name = [int(part) if part.isdecimal() else part for part in path.split(".")]
    here: Any = changed
    for section in sections:
        here = here[section]
    here[name] = value
    return changed


def test_every_setting_has_exactly_one_class() -> None:
    assert [key.path for key in keys() if classify(key.path) is None] == []


def test_every_rule_speaks_of_some_setting() -> None:
    paths = [key.path for key in keys()]
    assert [rule for rule in RULES if not any(f"{path}.".startswith(f"{rule}.") for path in paths)] == []


@pytest.mark.parametrize("key", [key.path for key in keys()])
def test_the_class_of_each_setting(key: str) -> None:
    if (
        key in FIXED
        or key == "optimizer.name"
        or (key.startswith(("model.", "data.tokenizer.", "data.sources.")) and key not in {*WARNED, *FREE})
    ):
        assert classify(key) == "fixed"
    elif key in WARNED or key.startswith(("optimizer.", "schedule.")):
        assert classify(key) == "warned"
    else:
        assert classify(key) == "free"
        assert key in FREE or key.partition(".")[0] in FREE_SECTIONS


def test_nothing_changed() -> None:
    differences = compare(dump(), dump())
    assert (differences.fixed, differences.warned) == ([], [])
    differences.raise_if_fixed("runs/demo")


def test_a_fixed_setting_that_changed_is_an_error_with_both_values() -> None:
    new = with_value("model.hidden_size", 1024)
    new["data"]["sources"][1]["text_field"] = "b"
    with pytest.raises(UserError) as refusal:
        compare(dump(), new).raise_if_fixed("runs/demo")
    message = str(refusal.value)
    assert "runs/demo" in message
    assert "model.hidden_size: 768 -> 1024" in message
    assert 'data.sources.1.text_field: "text" -> "b"' in message


def test_a_warned_setting_that_changed_is_told() -> None:
    differences = compare(dump(), with_value("optimizer.betas", [0.9, 0.99]))
    assert [str(difference) for difference in differences.warned] == [
        "optimizer.betas: [0.9, 0.95] -> [0.9, 0.99]"
    ]
    differences.raise_if_fixed("runs/demo")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.max_steps", 7),
        ("run.name", "other"),
        ("monitor.wandb.mode", "disabled"),
        ("kernels.compile", False),
    ],
)
def test_a_free_setting_may_change_in_silence(path: str, value: object) -> None:
    differences = compare(dump(), with_value(path, value))
    assert (differences.fixed, differences.warned) == ([], [])


def test_whole_numbers_and_their_fractions_are_the_same() -> None:
    assert compare(dump(), with_value("model.rope_theta", 10000)).fixed == []


def test_another_number_of_sources_is_fixed() -> None:
    fewer = dump()
    fewer["data"]["sources"].pop()
    for old, new in ((dump(), fewer), (fewer, dump())):
        fixed = compare(old, new).fixed
        assert fixed
        assert all(difference.path.startswith("data.sources.1.") for difference in fixed)
        assert "data.sources.1.type" in {difference.path for difference in fixed}


def test_a_setting_that_an_older_version_did_not_know_had_its_default() -> None:
    old = dump()
    del old["model"]["qk_norm"]
    del old["data"]["sources"][0]["weight"]
    assert compare(old, dump()).fixed == []
    assert [str(d) for d in compare(old, with_value("model.qk_norm", True)).fixed] == [
        "model.qk_norm: absent -> true"
    ]


def test_a_setting_that_exists_no_longer_is_told() -> None:
    old = dump() | {"legacy": {"mode": 3}}
    assert [str(d) for d in compare(old, dump()).warned] == ["legacy.mode: 3 -> absent"]
