"""Caches, shards, run folders and configurations of somebody else: who can help is said, and no traceback."""

from __future__ import annotations

import encodings.utf_8_sig  # noqa: F401  what this user may import, another may not
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmkit.config.show
import llmkit.data.inspect
import llmkit.inference
import llmkit.train  # noqa: F401
from llmkit.cli import main
from tests.access import closed_to_this_user
from tests.program import make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    umask = os.umask(0o022)
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if "pytest" in folder.name or folder.name.startswith("popen-"):  # its own, which others may not pass
            folder.chmod(0o755)
    yield tmp_path
    os.umask(umask)


def refused(capsys: pytest.CaptureFixture[str], closed: str, command: str, mode: int = 0) -> str:
    """What a command says that needs a path which may not be read; it must say no more."""
    capsys.readouterr()
    with closed_to_this_user(Path(closed), mode):
        code = main(shlex.split(command))
    message = capsys.readouterr().err
    assert code == 2 and message.startswith("llmkit: "), message
    assert "delete" not in message and "Traceback" not in message
    return message


def test_a_cache_of_another_user_is_not_to_be_deleted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "build", "tiny.yaml"]) == 0
    (record,) = Path("data-cache").glob("*/source.json")
    (tokens,) = Path("data-cache").glob("*/train/*.bin")
    (tokenizer,) = Path("data-cache").glob("tokenizer-*")
    for closed in (record, tokens, tokens.parent, tokenizer, Path("data-cache")):
        message = refused(capsys, str(closed), "data verify tiny.yaml")
        assert "Permission denied); ask " in message and f"{closed}, for read access" in message, message
        assert message.endswith("choose another data.cache_dir\n"), message


def test_a_cache_that_may_not_be_written_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data-cache").mkdir()
    message = refused(capsys, "data-cache", "data build tiny.yaml", 0o555)
    assert "data.cache_dir: " in message and "for write access, or choose another data.cache_dir" in message


@pytest.mark.parametrize(
    ("closed", "source"),
    [
        ("corpus", "{type: text, path: corpus}"),
        ("corpus", "{type: text, path: corpus/gone.txt}"),
        ("corpus", "{type: shards, path: corpus/web}"),
        ("corpus", "{type: megatron, path: corpus/web_text_document}"),
        ("corpus", "{type: megatron, path: corpus}"),
    ],
)
def test_sources_of_another_user_are_a_matter_for_their_owner(
    project: Path, capsys: pytest.CaptureFixture[str], closed: str, source: str
) -> None:
    message = refused(capsys, closed, f"data build tiny.yaml 'data.sources=[{source}]'")
    assert "Permission denied); ask" in message and "for read access to it" in message


def test_a_run_folder_of_another_user_is_a_matter_for_its_owner(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/tiny/checkpoints").mkdir(parents=True)
    for closed in ("runs/tiny/checkpoints", "runs/tiny", "runs"):
        for command in ("evaluate runs/tiny", "generate runs/tiny --prompt a"):
            assert "Permission denied); ask" in refused(capsys, closed, command)


@pytest.mark.parametrize("closed", ["runs", "runs/tiny", "runs/tiny/checkpoints", "runs/tiny/run.lock"])
def test_a_run_folder_of_another_user_cannot_be_trained_in(
    project: Path, capsys: pytest.CaptureFixture[str], closed: str
) -> None:
    for folder in ("checkpoints", "logs", "wandb"):
        Path("runs/tiny", folder).mkdir(parents=True, mode=0o777)
    Path("runs/tiny").chmod(0o777)
    Path("runs/tiny/run.lock").touch()
    Path("runs/tiny/run.lock").chmod(0o666)
    assert "Permission denied" in refused(capsys, closed, "train tiny.yaml run.deterministic=false")


def test_a_configuration_of_another_user_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("base").mkdir()
    Path("base/a.yaml").write_text("run: {name: a}\n")
    Path("b.yaml").write_text("extends: base/a.yaml\n" + Path("tiny.yaml").read_text())
    for command in ("config base/a.yaml", "config b.yaml"):
        assert "Permission denied" in refused(capsys, "base", command)
