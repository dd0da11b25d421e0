"""The configuration of a run as its page in W&B shows it: settings, code, layout, hardware, versions."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import llmkit

GIT_SECONDS = 5.0
_VERSIONS = ("python", "torch", "accelerate", "deepspeed")
_HARDWARE = ("device", "devices", "host", "hosts")
_ELSEWHERE = ("llmkit", "config")


def page_config(
    settings: Mapping[str, Any], manifest: Mapping[str, Any], forked_from: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What `wandb.init` gets as config. All of it is redacted already.

    settings: the resolved ones, by section. manifest: the content of manifest.json. forked_from: `run_id` and
    `step`, of a run that began as a copy or a branch of another one.
    """
    code = {"llmkit": manifest.get("llmkit", llmkit.__version__)}
    for name, folder in (("llmkit_commit", Path(llmkit.__file__).parent), ("commit", Path.cwd())):
        if (found := commit_of(folder)) is not None:
            code[name] = found
    versions = {name: manifest[name] for name in _VERSIONS if name in manifest}
    with suppress(metadata.PackageNotFoundError):
        versions["wandb"] = metadata.version("wandb")
    hardware = {name: manifest[name] for name in _HARDWARE if name in manifest}
    shown = (*_VERSIONS, *_HARDWARE, *_ELSEWHERE)
    others = {name: value for name, value in manifest.items() if name not in shown}
    return {
        **settings,
        "code": code,
        "versions": versions,
        "hardware": {**hardware, "cpu_cores": os.cpu_count()},
        "trained_parameters": sum(group.get("elements", 0) for group in manifest.get("parameter_groups", [])),
        **{f"{name}_resolved" if name in settings else name: value for name, value in others.items()},
        **({"forked_from": dict(forked_from)} if forked_from else {}),
    }


def commit_of(folder: Path) -> str | None:
    """The commit of the git repository that a folder is in, "+changes" where files differ; None for none.

    Addresses of remotes are not asked for.
    """
    git = ["git", "-C", str(folder)]
    try:
        inside = _output([*git, "ls-files", "--error-unmatch", "."])  # else a folder in somebody's home
        commit = _output([*git, "rev-parse", "HEAD"]) if inside is not None else None
        if not commit:
            return None
        return commit + ("+changes" if _output([*git, "diff", "--quiet", "HEAD", "--", "."]) is None else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def _output(command: list[str]) -> str | None:
    """What a command prints; None where it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
