"""The reference of all settings, and the search for the right key."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.config.keys import OTHER_NAMES, all_keys, key_of, keys, markdown, suggest
from llmkit.config.renamed import REMOVED, RENAMED


def test_every_setting_is_documented() -> None:
    assert [key.path for key in keys() if len(key.doc) < 10] == []


def test_every_section_is_documented() -> None:
    assert [key.path for key in all_keys().values() if key.is_section and len(key.doc) < 10] == []


def test_the_page_of_all_settings_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "config.md"
    remedy = (
        "python -c 'from llmkit.config.keys import markdown; print(markdown(), end=\"\")' > docs/config.md"
    )
    assert page.read_text() == markdown(), f"renew it with: {remedy}"


def test_the_page_has_every_setting_once() -> None:
    text = markdown()
    assert [key.path for key in keys() if text.count(f"| `{key.path}` |") != 1] == []


def test_names_of_other_toolkits_lead_to_settings_that_exist() -> None:
    known = all_keys()
    assert [name for name, path in OTHER_NAMES.items() if path not in known] == []
    assert [name for name in OTHER_NAMES if any(path.endswith(f".{name}") for path in known)] == []


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("train.max_step", ["train.max_steps"]),
        ("learning_rate", ["optimizer.learning_rate"]),
        ("lerning_rate", ["optimizer.learning_rate"]),
        ("model.LR", ["optimizer.learning_rate"]),
        ("optimizer.lr", ["optimizer.learning_rate"]),
        ("optimizer.groups.0.lr", ["optimizer.groups.N.learning_rate"]),
        ("sources", ["data.sources"]),
        ("data.sources.3.txt_field", ["data.sources.N.text_field"]),
        ("train.every_steps", ["checkpoint.every_steps", "evaluate.every_steps"]),
        ("monitor.wandb.projct", ["monitor.wandb.project"]),
        ("qqqqqq", []),
        ("", []),
    ],
)
def test_suggestions(path: str, right: list[str]) -> None:
    assert suggest(path) == right


def test_each_setting_suggests_itself_for_a_slip_of_the_pen() -> None:
    for key in keys():
        section, _, name = key.path.rpartition(".")
        if len(name) >= 7:
            slip = name[:3] + name[4:]
            assert key.path in suggest(f"{section}.{slip}".replace(".N", ".0")), slip


def test_keys_in_lists_are_found() -> None:
    found = key_of("data.sources.12.path")
    assert found is not None
    assert (found.path, found.allowed) == ("data.sources.N.path", "text, a list of texts, or null")
    assert key_of("data.sources.12") is not None
    assert key_of("data.nothing") is None


ROOT = Path(__file__).parents[2]
SECTIONS = "|".join(path for path in all_keys() if "." not in path)
NAME = re.compile(rf"(?<![\w./{{-])(?:{SECTIONS})(?:\.[A-Za-z_0-9]+|\[[^\]]+\])+")
NO_SETTINGS = {
    "run.lock",
    "data.md",
    "kernels.md",
    "faults.md",
    "train.sbatch",
    "train.yaml",
    "model.safetensors",
    "model.safetensors.index.json",
    "model.pth",
    "train.bin",
    "run.metrics",
    "run.config.model.hidden_size",
}
"""Files, and attributes in examples of Python."""


def by_index(name: str) -> str:
    """A setting with an index where it has another way to name an entry: [1], or the name of a source."""
    name = re.sub(r"\[(\d+)\]", r".\1", name)
    return re.sub(r"^data\.sources\.[A-Za-z][\w-]*", "data.sources.0", name)


def without_other_names(page: Path) -> str:
    """The text of a page; of that about other programs without the left column of its tables."""
    text = page.read_text()
    return re.sub(r"^\|[^|]*\|", "", text, flags=re.M) if page.name == "come-from.md" else text


def texts(module: Path) -> Iterator[str]:
    """The texts in a module, but for docstrings."""
    tree = ast.parse(module.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_every_setting_that_a_message_names_can_be_typed() -> None:
    named = {
        name
        for path in (ROOT / "llmkit").rglob("*.py")
        for text in texts(path)
        for name in NAME.findall(text)
    }
    assert len(named) > 50
    old = RENAMED.keys() | REMOVED.keys()
    assert {name for name in named - NO_SETTINGS - old if key_of(by_index(name)) is None} == set()


def test_every_setting_that_the_docs_name_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    pages += [ROOT / "slurm" / "train.sbatch", *filter(Path.is_file, (ROOT / "launch").rglob("*"))]
    named = {name for page in pages for name in NAME.findall(without_other_names(page))}
    assert len(named) > 50
    assert {name for name in named - NO_SETTINGS if key_of(by_index(name)) is None} == set()
