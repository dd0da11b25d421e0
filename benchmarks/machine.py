"""What a measurement was taken on, and with what; no name or path of the machine itself."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

import torch

from benchmarks.workloads import ROOT
from llmkit import __version__


def device_name(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), flags=re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def versions() -> str:
    """The versions that matter; a library that is not installed says so."""
    peers = dict.fromkeys(("transformers", "litgpt", "liger-kernel", "triton"), "not installed")
    for name in peers:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            peers[name] = importlib.metadata.version(name)
    listed = ", ".join(f"{name} {version}" for name, version in peers.items())
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    ours = f"llmkit {__version__}, torch {torch.__version__}{cuda}"
    return f"{ours}, {listed}, Python {platform.python_version()}"


def commit(checkout: Path = ROOT) -> str:
    """The checkout's commit, "-dirty" behind it if files differ from it."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def new_file(folder: Path, stem: str) -> Path:
    """A path in `folder` that no file has yet: stem.md, stem-2.md, ..."""
    number, path = 1, folder / f"{stem}.md"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.md"
    return path


def slug(name: str) -> str:
    """A device's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
