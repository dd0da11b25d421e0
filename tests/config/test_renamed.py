"""Settings under the names that they had before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.keys import all_keys
from llmkit.config.load import load
from llmkit.config.renamed import REMOVED, RENAMED, with_new_names
from llmkit.config.resume import compare
from llmkit.config.stored import read_stored
from llmkit.errors import UserError

BASE = "data: {sources: [{type: stdlib}]}\ntrain: {max_steps: 3}\n"
OLD = {
    "kernels.attention=matmul": "kernels.attention is called kernels.operators.attention now",
    "model.scaled_residual_init=false": (
        'model.scaled_residual_init is called model.residual_init now; what was true is "scaled"'
    ),
    "parallel.checkpoint_every=2": (
        "parallel.checkpoint_every is called parallel.activation_checkpointing_every now"
    ),
    "schedule.final_share=0.5": "schedule.final_share is called schedule.min_lr_ratio now",
    "schedule.decay_share=0.5": "schedule.decay_share is called schedule.decay_fraction now",
    "data.heldout_every=9": "data.heldout_every is called data.validation_fraction now; what was 20 is 0.05",
    "data.lanes=9": "data.lanes is called data.stream_shards now",
    "monitor.tensorboard=true": (
        'monitor.tensorboard is called monitor.trackers now; what was true is ["tensorboard"]'
    ),
}
GONE = {
    "data.sources.0.cache_live_tokens=true": "data.sources.0.cache_live_tokens was removed: live sources",
    "data.sources.0.write_through=true": "data.sources.0.write_through was removed: live sources",
}


def test_every_old_name_is_unknown_and_every_new_one_known() -> None:
    for old, (new, _, _) in RENAMED.items():
        assert old not in all_keys() and new in all_keys()
    assert len(OLD) == len(RENAMED)
    assert not REMOVED.keys() & all_keys().keys() and len(GONE) == len(REMOVED)


def test_a_setting_that_was_removed_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE)
    with pytest.raises(UserError) as caught:
        load(path, list(GONE))
    for override, wanted in GONE.items():
        assert f"  command line: {override}: {wanted}" in str(caught.value)
    assert "set live: false to tokenize the source once, before training" in str(caught.value)


def test_all_old_names_are_refused_at_once_each_with_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE)
    with pytest.raises(UserError) as caught:
        load(path, list(OLD))
    lines = str(caught.value).splitlines()
    for override, wanted in OLD.items():
        assert f"  command line: {override}: {wanted}" in lines
    assert len([line for line in lines if line.startswith("  command line")]) == len(OLD)


def test_an_old_name_in_a_file_that_is_extended_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE + "schedule:\n  final_share: 0.5\n")
    (tmp_path / "c.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(UserError, match=r"base.yaml:4: schedule.final_share is called schedule.min_lr_ratio"):
        load(tmp_path / "c.yaml")


def test_stored_settings_are_read_under_the_names_of_today() -> None:
    sources = [{"type": "stdlib"}, {"type": "text", "path": "a", "live": True, "write_through": True}]
    sources[0]["cache_live_tokens"] = False
    stored: dict[str, Any] = {
        "kernels": {"compile": False, "attention": "matmul"},
        "data": {"sources": sources, "heldout_every": 6, "lanes": 7},
        "model": {"scaled_residual_init": False},
        "parallel": {"checkpoint_every": 3},
        "schedule": {"decay_share": 0.3, "final_share": 0.4},
    }
    notes: list[str] = []
    config = read_stored(stored, "step-2", notes.append)
    assert notes == []
    assert (config.data.heldout_every, config.data.stream_shards) == (6, 7)
    assert [source.live for source in config.data.sources] == [False, True]
    assert not compare(stored, config.model_dump(mode="json")).all
    assert (config.kernels.compile, config.kernels.operators.attention) == (False, "matmul")
    assert config.model.residual_init == "normal"
    assert config.parallel.activation_checkpointing_every == 3
    assert (config.schedule.decay_fraction, config.schedule.min_lr_ratio) == (0.3, 0.4)
    assert "heldout_every" in stored["data"]  # what was given is left as it is


@pytest.mark.parametrize("content", [{}, {"data": None}, {"data": {"sources": None}}, {"schedule": [1]}])
def test_what_has_no_such_section_stays_as_it_is(content: dict[str, Any]) -> None:
    assert with_new_names(content) == content


def test_nothing_held_out_stays_nothing() -> None:
    assert with_new_names({"data": {"heldout_every": 0}}) == {"data": {"validation_fraction": 0.0}}


def test_a_fraction_that_holds_out_the_same_documents_is_no_change() -> None:
    old = {"data": {"validation_fraction": 1 / 6}}
    assert not compare(old, {"data": {"validation_fraction": 0.1667}}).all
    assert len(compare(old, {"data": {"validation_fraction": 0.2}}).all) == 1
    assert len(compare(old, {"data": {"validation_fraction": 0.0}}).all) == 1
