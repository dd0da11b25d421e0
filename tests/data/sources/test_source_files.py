from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkit.config.schema import Source
from llmkit.data.sources.source_files import list_files
from llmkit.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.jsonl", ".hidden/e.txt", "sub/.f.txt", "x[1].txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def names(root: Path, source: Source) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_files(source, "data.sources[0]")]


def test_a_folder_stands_for_all_files_under_it_but_hidden_ones(tree: Path) -> None:
    source = Source(type="text", path=str(tree))
    assert names(tree, source) == ["a.txt", "b.txt", "sub/c.txt", "sub/d.jsonl", "x[1].txt"]


def test_a_folder_of_records_stands_for_its_jsonl_files(tree: Path) -> None:
    assert names(tree, Source(type="jsonl", path=str(tree))) == ["sub/d.jsonl"]


def test_patterns_files_and_folders_mix_and_repeats_count_once(tree: Path) -> None:
    source = Source(type="text", path=[f"{tree}/*.txt", f"{tree}/sub", f"{tree}/sub/c.txt", f"{tree}/b.txt"])
    assert names(tree, source) == ["a.txt", "b.txt", "sub/c.txt", "sub/d.jsonl", "x[1].txt"]


def test_two_stars_go_down_into_folders(tree: Path) -> None:
    assert "sub/c.txt" in names(tree, Source(type="text", path=f"{tree}/**/*.txt"))


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is_where_it_exists(tree: Path) -> None:
    assert names(tree, Source(type="text", path=f"{tree}/x[1].txt")) == ["x[1].txt"]


def test_relative_paths_start_from_the_working_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(tree, Source(type="text", path="sub/c.txt")) == ["sub/c.txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.txt", r"data.sources\[0\].path: there is no gone.txt \(looked from "),
        ("gone/*.txt", r"data.sources\[0\].path: nothing matches gone/\*.txt"),
        ("empty", r"data.sources\[0\].path: empty holds no files"),
    ],
)
def test_where_nothing_is_found_the_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        list_files(Source(type="text", path=path), "data.sources[0]")


def test_a_path_is_needed() -> None:
    with pytest.raises(UserError, match=r"data.sources\[3\].path: a jsonl source needs a file"):
        list_files(Source(type="jsonl"), "data.sources[3]")


def test_the_standard_library_comes_without_tests_and_packages() -> None:
    files = list_files(Source(type="stdlib"), "data.sources[0]")
    assert Path(os.__file__) in files
    assert files == sorted(files, key=str)
    folders = {part for path in files for part in path.relative_to(Path(os.__file__).parent).parts[:-1]}
    assert not folders & {"site-packages", "test", "tests", "idlelib", "__pycache__"}
