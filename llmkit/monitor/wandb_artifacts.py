"""What `monitor.wandb.artifacts` asks for: the final checkpoint, as a reference, and the report."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from llmkit.monitor.wandb_open import Say

REPORT = "report.html"


def log_artifacts(run: Any, run_dir: Path, session: dict[str, Any], say: Say) -> None:
    """Adds the artifacts that the settings ask for; what cannot be made is noted and left out."""
    for name in session["artifacts"]:
        try:
            if name == "report":
                artifact = _report(run_dir, run.id)
            else:
                artifact = _checkpoint(run_dir, run.id, upload=name == "checkpoint_files")
            run.log_artifact(artifact, aliases=["latest"])
        except (OSError, ValueError) as error:
            say(f"no artifact {name} ({type(error).__name__}: {error})")


def _checkpoint(run_dir: Path, run_id: str, upload: bool) -> Any:
    """The newest checkpoint: where it lies, and the SHA-256 of its manifest, which has those of its files."""
    import wandb

    manifest = max((run_dir / "checkpoints").glob("step-*/manifest.json"), default=None)
    if manifest is None:
        raise ValueError("there is no checkpoint")
    folder = manifest.parent.resolve()
    facts = {
        "step": int(folder.name.removeprefix("step-")),
        "manifest_sha256": sha256(manifest.read_bytes()).hexdigest(),
    }
    artifact = wandb.Artifact(f"checkpoint-{run_id}", type="model", metadata=facts)
    if upload:
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)  # without a copy on this disk
    else:
        artifact.add_reference(folder.as_uri(), name="checkpoint", checksum=False)
    return artifact


def _report(run_dir: Path, run_id: str) -> Any:
    import wandb

    if not (run_dir / REPORT).is_file():
        raise ValueError(f"there is no {REPORT}; monitor.report or `llmkit report` writes it")
    artifact = wandb.Artifact(f"report-{run_id}", type="report")
    artifact.add_file(str(run_dir / REPORT))
    return artifact
