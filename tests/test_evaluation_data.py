"""`llmkit evaluate` from anywhere, of moved runs, of other versions' runs, and of other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from llmkit.checkpoint.format import canonical
from llmkit.cli import main
from llmkit.config.schema import Data, Source
from llmkit.data.building.parts import held_out
from llmkit.data.located import located
from tests.program import make_project


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a finished run; and what evaluation prints of it, without its first line."""
    folder = tmp_path_factory.mktemp("evaluation")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", "train.max_steps=3", "checkpoint.every_steps=0"]) == 0
    return folder


@pytest.fixture
def project(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "project")


def printed(capsys: Any, run: Path, *arguments: str, code: int = 0) -> list[str]:
    """What `llmkit evaluate` prints, without the line that names the checkpoint."""
    capsys.readouterr()
    assert main(["evaluate", str(run), "--precision", "fp32", *arguments]) == code
    output = capsys.readouterr()
    return output.out.splitlines()[1:] if code == 0 else [output.err]


@pytest.fixture
def wanted(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    return printed(capsys, Path("runs/tiny"))


def test_it_works_from_another_folder_and_for_a_project_that_moved(
    project, wanted, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert printed(capsys, project / "runs" / "tiny") == wanted
    assert printed(capsys, Path("project/runs/tiny/checkpoints/step-00000003")) == wanted


def test_it_works_for_a_run_folder_that_moved_away_from_its_project(
    trained, project, wanted, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (project / "runs" / "tiny").rename("moved")
    assert printed(capsys, Path("moved")) == wanted


def test_data_that_are_nowhere_are_named(project, tmp_path, monkeypatch, capsys):
    (project / "runs" / "tiny").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    rewrite(Path("moved"), lambda content: content["state"].update(started_in="/nowhere"))
    (message,) = printed(capsys, Path("moved"), code=2)
    assert "the data of the run are not there: corpus (looked from " in message
    assert "--data" in message


def heldout_texts() -> list[str]:
    texts = [path.read_text() for path in sorted(Path("corpus").iterdir())]
    held = held_out(0, np.arange(len(texts)), 20)
    return [text for text, is_held in zip(texts, held, strict=True) if is_held]


def test_other_data_are_read_whole(project, wanted, monkeypatch, capsys):
    monkeypatch.chdir(project)
    Path("texts").mkdir()
    for number, text in enumerate(heldout_texts()):
        Path(f"texts/{number}.txt").write_text(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in heldout_texts())
    Path("texts.jsonl").write_text(lines)
    for path in ("texts", "texts/*.txt", "texts.jsonl"):
        assert printed(capsys, Path("runs/tiny"), "--data", path) == [f"data           {path}", *wanted]
    Path("short.txt").write_text("row")
    assert ", 4 tokens" in printed(capsys, Path("runs/tiny"), "--data", "short.txt")[1]
    (message,) = printed(capsys, Path("runs/tiny"), "--data", "nothing.txt", code=2)
    assert "--data nothing.txt: there is no such file" in message


def test_other_data_may_be_what_another_configuration_holds_out(project, wanted, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert printed(capsys, Path("runs/tiny"), "--data", "tiny.yaml")[1:] == wanted
    text = Path("tiny.yaml").read_text()
    Path("none.yaml").write_text(text.replace("sequence_length: 32", "validation_fraction: 0"))
    (message,) = printed(capsys, Path("runs/tiny"), "--data", "none.yaml", code=2)
    assert "--data none.yaml: nothing is held out" in message


def rewrite(folder: Path, change: Any) -> None:
    """Changes a checkpoint's manifest as another version would have written it."""
    path = next(folder.glob("checkpoints/*/manifest.json"))
    content = json.loads(path.read_bytes())
    del content["checksum"]
    change(content)
    path.write_bytes(canonical(content | {"checksum": xxhash.xxh64(canonical(content)).hexdigest()}))


def test_what_another_version_did_not_know_or_knew_besides_is_no_obstacle(
    project, wanted, monkeypatch, capsys
):
    monkeypatch.chdir(project)

    def change(content: dict[str, Any]) -> None:
        content["versions"]["llmkit"] = "0.0.9"
        content["config"]["data"]["dreams"] = 3
        del content["config"]["schedule"], content["config"]["model"]["norm_eps"]
        del content["model"]["norm_eps"]

    rewrite(Path("runs/tiny"), change)
    assert main(["evaluate", "runs/tiny", "--precision", "fp32"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[1:] == wanted
    assert "(written by llmkit 0.0.9): left out data.dreams = 3" in output.err
    assert main(["generate", "runs/tiny", "--prompt", "the", "--max-new-tokens", "2"]) == 0
    assert main(["train", "tiny.yaml", "train.max_steps=4"]) == 0


@pytest.mark.parametrize(
    ("section", "name", "value", "says"),
    [
        ("config", "run", {"seed": "lucky"}, 'run.seed = "lucky" is none that llmkit'),
        ("model", "experts", 8, "its model has settings that llmkit"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_name(
    project, section, name, value, says, monkeypatch, capsys
):
    monkeypatch.chdir(project)
    rewrite(Path("runs/tiny"), lambda content: content[section].update({name: value}))
    (message,) = printed(capsys, Path("runs/tiny"), code=2)
    assert says in message
    assert "written by llmkit" in message and "use the version that wrote it" in message


def test_paths_that_do_not_depend_on_the_working_directory_stay():
    sources = [
        Source(type="text", path=["a/*.txt", "/b", "s3://bucket/d"]),
        Source(type="hub", dataset="someone/something"),
        Source(type="shards", path="e", heldout_path="f"),
    ]
    text, hub, shards = located(Data(sources=sources), Path("/base")).sources
    assert text.path == ["/base/a/*.txt", "/b", "s3://bucket/d"]
    assert hub.dataset == "someone/something"
    assert (shards.path, shards.heldout_path) == ("/base/e", "/base/f")


def test_data_without_text_are_refused_as_such(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    Path("nothing.txt").write_text("")
    (message,) = printed(capsys, Path("runs/tiny"), "--data", "nothing.txt", code=2)
    assert "it has no usable document" in message
    assert "train" not in message
