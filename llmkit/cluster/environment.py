"""Which variables a job gets. SLURM's controller keeps them, so no more than it needs, and no secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from llmkit.cluster.fields import unfit_for_scripts
from llmkit.config.mistakes import SECRET_VALUE, access_in_url, display, is_secret
from llmkit.slurm import OF_OTHER_JOBS

NAMES = {
    "CC", "CUDA_HOME", "CUDA_PATH", "CURL_CA_BUNDLE", "CXX", "HOME", "HTTPS_PROXY", "HTTP_PROXY",
    "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOADEDMODULES", "LOGNAME", "MODULEPATH", "MODULESHOME",
    "NETRC", "NO_PROXY", "PATH", "PYTHONPATH", "REQUESTS_CA_BUNDLE", "SHELL", "SSL_CERT_DIR",
    "SSL_CERT_FILE", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy",
}  # fmt: skip
BEGINNINGS = (
    "ACCELERATE_", "CONDA_", "DS_", "FI_", "GLOO_", "HF_", "HUGGINGFACE_", "KMP_", "LC_", "LMOD_",
    "MKL_", "NCCL_", "OMP_", "PYTORCH_", "TORCH", "TRITON_", "UCX_", "WANDB_", "XDG_CACHE_",
    "XDG_CONFIG_", "XDG_DATA_",
)  # fmt: skip
WANTED = ("HF_TOKEN", "WANDB_API_KEY")
"""Secrets that a run may need."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def exported(environment: Mapping[str, str], of_script: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Names of the variables that go along: the usual ones that are set and hold no secret, and `asked`."""
    usual = {
        name
        for name, value in environment.items()
        if (name in NAMES or name in of_script or name.startswith(BEGINNINGS))
        and not _holds_secret(name, value)
    }
    return sorted(name for name in usual | set(asked) if _NAME.fullmatch(name))


def _holds_secret(name: str, value: str) -> bool:
    return is_secret(name) or bool(SECRET_VALUE.fullmatch(value)) or bool(access_in_url(value))


def wrong_variables(environment: Mapping[str, str], asked: Sequence[str]) -> Iterator[str]:
    """What is wrong with the names that `--pass-env` was given, a sentence each."""
    for name in asked:
        if not _NAME.fullmatch(name) or unfit_for_scripts(name):
            yield f"--pass-env: {display(name)} is no name of a variable"
        elif name.startswith(OF_OTHER_JOBS):
            yield f"--pass-env: {name} belongs to a job; it would be that of another one"
        elif name not in environment:
            yield f"--pass-env: {name} is not set here"


def left_behind(environment: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Secrets of this shell that a run may need and that do not go along."""
    return [name for name in WANTED if environment.get(name) and name not in names]
