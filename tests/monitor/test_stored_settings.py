"""Settings that a run folder keeps, with their origins; what is changed, and what differs between runs."""

from __future__ import annotations

from pathlib import Path

from llmkit.config.load import load
from llmkit.config.show import to_yaml
from llmkit.config.walk import leaves
from llmkit.monitor.stored_settings import StoredSettings, differences, read_settings
from tests.program import make_project

OLD_RUNS = Path(__file__).parents[1] / "old_runs"


def stored(folder: Path, *overrides: str) -> StoredSettings:
    loaded = load(make_project(folder, documents=1), overrides)
    (folder / "start.yaml").write_text(to_yaml(loaded.config, loaded.origins))
    return read_settings(folder / "start.yaml")


def test_all_settings_come_back_with_their_origins(tmp_path: Path) -> None:
    loaded = load(make_project(tmp_path, documents=1), ['monitor.sample="  # x"'])
    (tmp_path / "start.yaml").write_text(to_yaml(loaded.config, loaded.origins))
    found = read_settings(tmp_path / "start.yaml")
    wanted = dict(leaves(loaded.config))
    assert found.values.keys() == wanted.keys()
    assert found.get("monitor.sample") == "  # x" and found.get("data.sources.0.path") == "corpus"
    assert found.get("optimizer.betas") == list(loaded.config.optimizer.betas)
    assert found.get("no.such", 3) == 3
    assert found.origins == {name: loaded.origins[name] for name in found.origins}
    assert found.origins["monitor.sample"] == "command line" and found.origins["run.seed"] == "default"


def test_what_is_not_at_its_default_is_shown_without_secrets(tmp_path: Path) -> None:
    found = stored(tmp_path, "train.max_steps=7")
    found.values["data.sources.0.path"] = "https://user:pw@host/x?token=abc"  # as a hand may have written it
    changed = found.changed()
    assert changed["train.max_steps"] == ("7", "null", "command line")
    assert changed["model.num_hidden_layers"][0] == "2"
    assert changed["data.sources.0.path"][0] == "a URL that gives access (not shown)"
    assert "data.curriculum" not in changed  # an empty list by default
    assert "run.seed" not in changed and "data.sources.0.weight" not in changed


def test_differences_of_runs_are_by_setting(tmp_path: Path) -> None:
    one = stored(tmp_path / "a", "run.seed=1")
    two = stored(tmp_path / "b", "optimizer.learning_rate=0.5")
    assert differences([one, two]) == {"run.seed": ["1", "0"], "optimizer.learning_rate": ["0.01", "0.5"]}
    assert differences([one, one]) == {}
    older = StoredSettings({name: value for name, value in one.values.items() if name != "run.deterministic"})
    assert differences([one, older]) == {"run.deterministic": ["true", "false"]}
    more = StoredSettings({**one.values, "data.sources.1.weight": 1.0})
    assert differences([one, more]) == {"data.sources.1.weight": ["", "1.0"]}


def test_a_file_of_an_older_version_is_read_under_the_names_of_today() -> None:
    found = read_settings(OLD_RUNS / "2026-11-22-folder/folder/config.yaml")
    assert found.get("data.validation_fraction") is not None and "data.heldout_every" not in found.values
    assert found.origins == {}


def test_a_file_that_cannot_be_read_has_no_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "missing.yaml") == StoredSettings()
    (tmp_path / "bad.yaml").write_bytes(b"a: [\xff")
    assert read_settings(tmp_path / "bad.yaml") == StoredSettings()
