"""Which checkpoints a path names."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.checkpoints.found import find
from llmkit.errors import UserError


def test_a_run_its_folder_of_checkpoints_and_one_of_them(project: Path) -> None:
    run = Path("runs/tiny")
    for path in (run, run / "checkpoints"):
        found = find(path)
        assert [folder.name for folder in found.folders] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
        assert found.run == run and found.root == run / "checkpoints" and not found.single
    found = find(run / "checkpoints/step-00000004")
    assert [folder.name for folder in found.folders] == ["step-00000004"]
    assert found.single and found.run == run
    (run / "checkpoints").rename("elsewhere")
    found = find(Path("elsewhere"))
    assert len(found.folders) == 4 and found.run is None
    (run / "checkpoints").symlink_to(project / "elsewhere")
    assert find(run).run == run


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "nowhere: no such folder; name a run folder"),
        ("s3://bucket/tiny@8", "is a URL; fetch the copy first .llmkit checkpoint fetch URL FOLDER"),
        ("tiny.yaml", "tiny.yaml: is no folder; name a run folder"),
        ("corpus", "corpus: there is no checkpoint in it"),
        ("runs", "runs: there is no checkpoint in it"),
    ],
)
def test_what_names_none_is_one_message(project: Path, path: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        find(Path(path))


def test_a_checkpoint_by_name(project: Path) -> None:
    found = find(Path("runs/tiny@step-4"))
    assert [folder.name for folder in found.folders] == ["step-00000004"]
    assert found.single and found.run == Path("runs/tiny")
