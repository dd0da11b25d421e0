"""What plugins register, and what becomes of those that cannot be imported."""

from __future__ import annotations

import hashlib
import textwrap

import pytest

from llmkit.errors import UserError
from llmkit.registry import Component, find, import_plugin, names, register, source_hashes
from tests.examples.project import forgotten


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules into the working directory; all are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    written: list[str] = []

    def to_file(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        written.append(name)
        return name

    with forgotten():
        yield to_file
        with forgotten(*written):
            pass


def test_a_component_is_found_by_kind_and_name(write):
    @register("schedule", "flat")
    def flat(step, span, settings):
        return 1.0

    assert find("schedule", "flat").make is flat and find("optimizer", "flat") is None
    assert names("schedule")[-1] == "flat" and "cosine" in names("schedule")
    assert find("schedule", ["flat"]) is None and find("schedule", None) is None


def test_a_component_brings_its_settings(write):
    class Thing:
        class Config:
            pass

    register("hook", "thing")(Thing)
    component = find("hook", "thing")
    assert component.settings is Thing.Config and component.origin.endswith("<locals>.Thing")


def test_defining_a_component_again_replaces_it(write):
    for value in (1, 2):
        exec(f"def same(): return {value}", scope := {"__name__": "notebook"})
        register("schedule", "same")(scope["same"])
    assert find("schedule", "same").make() == 2


@pytest.mark.parametrize(
    "kind, name, problem",
    [
        ("model", "gpt", "is llmkit's own"),
        ("optimizer", "muon", "is llmkit's own"),
        ("operator", "torch", "is llmkit's own"),
        ("models", "mine", "there is no kind 'models'; the kinds are model, optimizer"),
        ("model", "two words", "may have letters, digits"),
        ("model", "", "may have letters, digits"),
    ],
)
def test_names_that_cannot_be(kind, name, problem, write):
    with pytest.raises(UserError, match=problem):
        register(kind, name)(lambda: None)


def test_a_name_that_is_taken_is_refused_with_both_places(write):
    for module in ("first_plugin", "second_plugin"):
        write(module, 'import llmkit\n\n@llmkit.register("sink", "mine")\nclass Mine(llmkit.Sink): ...\n')
    import_plugin("first_plugin")
    with pytest.raises(UserError) as refused:
        import_plugin("second_plugin")
    assert str(refused.value) == (
        "the plugin second_plugin: the sink 'mine' is registered twice, by first_plugin.Mine and by "
        "second_plugin.Mine; rename one"
    )


@pytest.mark.parametrize(
    "text, problem",
    [
        (
            "import no_such_package",
            r"ModuleNotFoundError: No module named 'no_such_package' \(.*plug\.py:1\)",
        ),
        ("x = 1\nx.y", r"AttributeError: 'int' object has no attribute 'y' \(.*plug\.py:2\)"),
        ("def f(:", r"SyntaxError: .*\(.*plug\.py:1\)"),
    ],
)
def test_a_plugin_that_fails_is_named_with_its_line(text, problem, write):
    with pytest.raises(UserError, match=f"the plugin plug cannot be imported: {problem}"):
        import_plugin(write("plug", text))


@pytest.mark.parametrize("name", ["nowhere_at_all", "nowhere_at_all.inner"])
def test_a_plugin_that_is_not_there_is_named_with_where_was_looked(name, write, tmp_path):
    with pytest.raises(
        UserError, match="there is no module nowhere_at_all, neither installed nor below"
    ) as no:
        import_plugin(name)
    assert str(tmp_path) in str(no.value)


def test_the_source_of_plugins_and_components_is_hashed(write, tmp_path):
    import_plugin(
        write("plug", "import llmkit\n\n@llmkit.register('sink', 'one')\nclass One(llmkit.Sink): ...\n")
    )
    digest = hashlib.sha256((tmp_path / "plug.py").read_bytes()).hexdigest()
    hashes = source_hashes(["plug"], [find("sink", "one"), Component("schedule", "built", len, None)])
    assert hashes == {"plugin plug": digest, "sink one": digest, "schedule built": ""}
