"""Versions, the code and the settings that all nodes must have alike, and what is optional."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import llmkit
from llmkit.build_locks import OLD, extensions_folder, lock_ages
from llmkit.config.mistakes import is_secret, printable
from llmkit.config.redaction import Redactor
from llmkit.doctor.findings import Finding
from llmkit.doctor.scope import Scope
from llmkit.errors import RunFault, UserError
from llmkit.monitor.wandb_mode import resolve_mode, server_url
from llmkit.slurm import ask

PACKAGES = ("transformers", "datasets", "tokenizers", "wandb", "triton", "pynvml")
DECIDING = (
    "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_", "CUBLAS_", "UCX_", "FI_", "OMP_", "MKL_", "TRITON_",
    "TORCHINDUCTOR_", "HF_HUB_OFFLINE", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "ACCELERATE_",
)  # fmt: skip
"""Variables whose names begin so decide how a node computes or talks."""
OF_ONE_NODE = ("CUDA_VISIBLE_DEVICES", "TORCHELASTIC_")
LONGEST_VALUE = 80
SECONDS = 3.0
"""For an answer of SLURM's or a server's."""


def software_findings(scope: Scope, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Imports PyTorch, and finds out whether torch.compile can work."""
    from llmkit.parallel.agreement import software_versions

    for name, version in software_versions().items():
        yield Finding(name, "ok", version, compared="must")
    yield from (Finding(name, "ok", _version(name), compared="should") for name in PACKAGES)
    yield packages_finding()
    if commit := git_commit(Path(llmkit.__file__).parents[1]):
        yield Finding("git", "ok", commit, compared="should")
    if scope.config:
        yield config_finding(Path(scope.config))
    yield environment_finding(environment)
    yield build_locks_finding(environment)
    yield Finding("slurm", "ok", _slurm(), compared="should")
    yield wandb_finding(environment)


def _version(package: str) -> str:
    try:
        return metadata.version("nvidia-ml-py" if package == "pynvml" else package)
    except metadata.PackageNotFoundError:
        return "not installed"


def packages_finding() -> Finding:
    """All packages that Python finds, as one digest."""
    found = {f"{each.name}=={each.version}" for each in metadata.distributions()}
    digest = hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:12]
    return Finding("packages", "ok", f"{len(found)} packages, digest {digest}", compared="should")


def git_commit(checkout: Path) -> str:
    """The commit that a checkout is at; "" where the folder is none."""
    git = checkout / ".git"
    try:
        if git.is_file():  # of a linked worktree
            git = Path(git.read_text().removeprefix("gitdir:").strip())
        head = (git / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head[:12]
        common = git / "commondir"
        root = git / common.read_text().strip() if common.exists() else git
        if (root / name).exists():
            return (root / name).read_text().strip()[:12]
        lines = (root / "packed-refs").read_text().splitlines()
        return next((line[:12] for line in lines if line.endswith(f" {name}")), "")
    except OSError:
        return ""


def config_finding(path: Path) -> Finding:
    """A configuration with all that it extends, as one digest of its settings.

    Where some of them are given on the command line alone, what is missing without stands for the digest.
    """
    from llmkit.config.load import load

    try:
        digest = hashlib.sha256(load(path).config.model_dump_json().encode()).hexdigest()[:12]
    except UserError as error:
        why = printable(" ".join(str(error).split()), 200)
        if not path.is_file():
            return Finding("config", "fail", why, "all nodes must see the same file", "must")
        return Finding("config", "ok", f"without overrides: {why}", compared="must")
    return Finding("config", "ok", f"{path}, digest {digest}", compared="must")


def environment_finding(environment: Mapping[str, str]) -> Finding:
    """The variables that decide how this node computes or talks, without secrets."""
    redactor = Redactor(environment)
    names = sorted(
        name for name in environment
        if name.startswith(DECIDING) and not name.startswith(OF_ONE_NODE) and not is_secret(name)
    )  # fmt: skip
    shown = [f"{name}={redactor.text(environment[name])[:LONGEST_VALUE]}" for name in names]
    return Finding("environment", "ok", " ".join(shown) or "nothing set that decides", compared="should")


def build_locks_finding(environment: Mapping[str, str]) -> Finding:
    """Locks of builds of C++ extensions that were killed; those of Inductor end with their process."""
    folder = extensions_folder(environment)
    if old := [str(path) for path, age in lock_ages(folder) if age > OLD]:
        advice = "remove these files when no process builds: starts wait for them"
        return Finding("build locks", "warn", f"left by a build that was killed: {', '.join(old)}", advice)
    return Finding("build locks", "ok", f"no old ones in {folder}")


def _slurm() -> str:
    """The version of SLURM."""
    if shutil.which("sbatch") is None:
        return "no sbatch found"
    try:
        answer = ask("sbatch", "--version", seconds=SECONDS)
    except RunFault as fault:
        return str(fault)
    return answer.output.strip() or f"sbatch is there, and fails: {answer.refusal}"


def reaches(url: str) -> bool:
    """Whether a server can be connected to; nothing is sent."""
    try:
        parts = urlsplit(url)
        port = parts.port or (80 if parts.scheme == "http" else 443)
        if not parts.hostname:
            return False
        with socket.create_connection((parts.hostname, port), timeout=SECONDS):
            return True
    except (OSError, ValueError):
        return False


def wandb_finding(environment: Mapping[str, str], reach: Callable[[str], bool] = reaches) -> Finding:
    """Whether a run would be mirrored to W&B, and where, and whether this machine can connect to it."""
    try:
        decision = resolve_mode("auto", environment)
    except UserError as error:
        return Finding("wandb mode", "warn", str(error), "set it to one of these, or unset it")
    why = f" ({decision.reason})" if decision.reason else ""
    if decision.mode != "online":
        return Finding("wandb mode", "ok", f"{decision.mode}{why}")
    where = server_url(environment)
    if not reach(where):
        advice = (
            "runs are kept on disk meanwhile: send them later by `llmkit sync RUN` from a machine that can"
        )
        return Finding("wandb mode", "warn", f"online at {where}, which cannot be reached from here", advice)
    return Finding("wandb mode", "ok", f"online at {where}{why}")
