"""The schema as a whole: every setting has its documentation, and every section its defaults."""

from __future__ import annotations

from llmkit.config.entries import LISTS
from llmkit.config.keys import all_keys, keys
from llmkit.config.registered import CHOICES
from llmkit.config.schema import BPE_VOCAB_SIZE, BYTES_VOCABULARY, Config, default_source_name
from llmkit.registry import BUILT_IN


def test_every_setting_is_documented() -> None:
    assert [key.path for key in keys() if not key.doc] == []


def test_only_the_data_must_be_given() -> None:
    config = Config.model_validate({"data": {"sources": [{"type": "stdlib"}]}})
    assert {key.path for key in keys() if key.default == "required"} <= {
        "data.sources.N.type", "data.curriculum.N.step", "data.curriculum.N.weights",
        "hooks.N.type", "monitor.sinks.N.type", "optimizer.groups.N.params",
    }  # fmt: skip
    assert config.parallel.zero_stage == "auto"


def test_names_and_sizes_that_other_rooms_rely_on() -> None:
    assert default_source_name("text", 3) == "text-3"
    assert BYTES_VOCABULARY == 256 + 1 < BPE_VOCAB_SIZE


def test_the_registry_knows_the_names_of_the_schema() -> None:
    chosen = {choice.kind: f"{choice.section}.{choice.key}" for choice in CHOICES}
    chosen |= {each.kind: f"{each.path}.N.type" for each in LISTS}
    known = {kind: names for kind, names in BUILT_IN.items() if kind != "operator"}  # tests/kernels has these
    assert {kind: all_keys()[path].choices for kind, path in chosen.items() if kind in BUILT_IN} == known
