"""The artifacts that a run asks for."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmkit.monitor.wandb_artifacts import log_artifacts


def logged(run_dir: Path, *names: str) -> tuple[list[Any], list[str]]:
    """The artifacts, and what was said of those that there are not."""
    found: list[Any] = []
    said: list[str] = []
    run = SimpleNamespace(id="abc", log_artifact=lambda artifact, aliases: found.append(artifact))
    log_artifacts(run, run_dir, {"artifacts": list(names)}, said.append)
    return found, said


def test_the_newest_checkpoint_is_a_reference_with_a_checksum(tmp_path: Path) -> None:
    for step in (20, 100):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(f"manifest of {step}")
    (tmp_path / "checkpoints" / "step-00000200").mkdir()  # not committed
    (artifact,), said = logged(tmp_path, "checkpoint")
    assert said == [] and (artifact.name, artifact.type) == ("checkpoint-abc", "model")
    expected = sha256(b"manifest of 100").hexdigest()
    assert artifact.metadata == {"step": 100, "manifest_sha256": expected}
    (entry,) = artifact.manifest.entries.values()
    assert entry.ref == (tmp_path / "checkpoints" / "step-00000100" / "manifest.json").as_uri()


def test_its_files_are_uploaded_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000100"
    folder.mkdir(parents=True)
    for name in ("manifest.json", "pieces.safetensors"):
        (folder / name).write_text(name)
    (artifact,), said = logged(tmp_path, "checkpoint_files")
    assert said == [] and artifact.name == "checkpoint-abc"
    entries = artifact.manifest.entries
    assert {name: entry.local_path for name, entry in entries.items()} == {
        name: str(folder / name) for name in ("manifest.json", "pieces.safetensors")
    }


def test_what_is_not_there_is_said_and_left_out(tmp_path: Path) -> None:
    found, said = logged(tmp_path, "checkpoint", "report")
    assert found == []
    assert said == [
        "no artifact checkpoint (ValueError: there is no checkpoint)",
        "no artifact report (ValueError: there is no report.html; monitor.report or `llmkit report` "
        "writes it)",
    ]


def test_the_report_is_added(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html>")
    (artifact,), said = logged(tmp_path, "report")
    assert said == [] and list(artifact.manifest.entries) == ["report.html"]
