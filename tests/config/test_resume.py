"""Which settings may change when a run goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmkit.config.resume import compare
from llmkit.config.schema import Config, Data, Source
from llmkit.errors import UserError


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


def test_nothing_changed() -> None:
    differences = compare(dump(), dump())
    assert differences.all == []
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


def test_a_setting_of_the_data_may_change_where_that_is_allowed() -> None:
    differences = compare(dump(), with_value("data.sources.1.weight", 2.0))
    assert [str(difference) for difference in differences.of("data")] == ["data.sources.1.weight: 1.0 -> 2.0"]
    with pytest.raises(UserError, match=r"weight: 1\.0 -> 2\.0(.|\n)*--allow-data-change"):
        differences.raise_if_fixed("runs/demo")
    differences.raise_if_fixed("runs/demo", allow_data_change=True)


def test_allowing_other_data_allows_nothing_else() -> None:
    with pytest.raises(UserError) as refusal:
        compare(dump(), with_value("run.seed", 5)).raise_if_fixed("runs/demo", allow_data_change=True)
    assert "--allow-data-change" not in str(refusal.value)


def test_a_warned_setting_that_changed_is_told() -> None:
    differences = compare(dump(), with_value("optimizer.betas", [0.9, 0.99]))
    assert [str(difference) for difference in differences.of("warned")] == [
        "optimizer.betas: [0.9, 0.95] -> [0.9, 0.99]"
    ]
    differences.raise_if_fixed("runs/demo")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.vocab_pad_multiple", 64),
        ("run.name", "other"),
        ("monitor.wandb.mode", "disabled"),
        ("kernels.compile", False),
    ],
)
def test_a_free_setting_may_change(path: str, value: object) -> None:
    (difference,) = compare(dump(), with_value(path, value), {path: "mine.yaml:3"}).all
    assert (difference.path, difference.rule.kind) == (path, "free")
    assert difference.to_json()["origin"] == "mine.yaml:3"


def test_whole_numbers_and_their_fractions_are_the_same() -> None:
    assert compare(dump(), with_value("model.rope_theta", 10000)).all == []


def test_another_number_of_sources_is_other_data() -> None:
    fewer = dump()
    fewer["data"]["sources"].pop()
    (gone,) = compare(dump(), fewer).of("data")
    (new,) = compare(fewer, dump()).of("data")
    assert (gone.path, gone.new, new.path, new.old) == (
        "data.sources.1",
        "absent",
        "data.sources.1",
        "absent",
    )
    assert gone.old == new.new == 'type "text", path "a"'


def test_a_setting_that_an_older_version_did_not_know_had_its_default() -> None:
    old = dump()
    del old["model"]["qk_norm"]
    del old["data"]["sources"][0]["weight"]
    assert compare(old, dump()).all == []
    assert [str(d) for d in compare(old, with_value("model.qk_norm", True)).of("fixed")] == [
        "model.qk_norm: absent -> true"
    ]


def test_a_setting_that_exists_no_longer_is_told() -> None:
    old = dump() | {"legacy": {"mode": 3}}
    assert [str(d) for d in compare(old, dump()).of("warned")] == ["legacy.mode: 3 -> absent"]


def test_stages_of_a_curriculum_that_come_are_other_data() -> None:
    new = with_value("data.curriculum", [{"step": 5, "weights": {"stdlib-0": 2.0}}])
    (difference,) = compare(dump(), new).of("data")
    assert str(difference) == "data.curriculum.0: absent -> step 5, weights.stdlib-0 2.0"
    assert len(compare(dump(), new).all) == 1


def test_the_refusal_gives_reason_and_origin() -> None:
    differences = compare(dump(), with_value("run.seed", 5), {"run.seed": "command line"})
    with pytest.raises(UserError, match=r"run\.seed: 0 -> 5 \(command line\): decides the order"):
        differences.raise_if_fixed("runs/demo")
