"""Versions, code and settings as digests; W&B and the environment without their secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llmkit.build_locks import OLD
from llmkit.doctor.scope import Scope
from llmkit.doctor.software import (
    build_locks_finding,
    config_finding,
    environment_finding,
    git_commit,
    reaches,
    software_findings,
    wandb_finding,
)
from llmkit.ports import listen

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_versions_and_the_digest_of_the_source_must_be_the_same() -> None:
    found = {each.name: each for each in software_findings(Scope("."), {})}
    assert found["torch"].value == torch.__version__
    assert "source" in found["llmkit"].value and "digest" in found["packages"].value
    must = {name for name, each in found.items() if each.compared == "must"}
    assert must == {"llmkit", "python", "torch", "accelerate", "deepspeed"}
    assert {"transformers", "slurm", "wandb mode", "build locks"} <= set(found)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"WANDB_API_KEY": "0123456789secret"}, "online at https://api.wandb.ai"),
        ({"HOME": "/nowhere"}, "offline (no API key found)"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "sometimes"}, "WANDB_MODE=sometimes: allowed are"),
    ],
)
def test_the_state_of_wandb_is_shown_without_its_key(environment: dict[str, str], shown: str) -> None:
    found = wandb_finding(environment, lambda url: True)
    assert found.value.startswith(shown) and "secret" not in found.value


def test_a_server_that_cannot_be_reached_is_remarked_on() -> None:
    asked = []
    environment = {"WANDB_API_KEY": "0123456789secret", "WANDB_BASE_URL": "https://me:0123@wandb.example.org"}
    found = wandb_finding(environment, lambda url: bool(asked.append(url)))
    assert found.state == "warn" and "llmkit sync" in found.advice
    assert asked == ["https://wandb.example.org"]
    with listen() as listener:
        port = listener.getsockname()[1]
        assert reaches(f"http://127.0.0.1:{port}")
    assert (
        not reaches(f"http://127.0.0.1:{port}") and not reaches("no url") and not reaches("http://a:99999999")
    )


def test_only_variables_that_decide_are_shown_and_no_secret() -> None:
    environment = {
        "NCCL_DEBUG": "INFO", "HOME": "/home/me", "CUDA_VISIBLE_DEVICES": "3", "TORCH_API_KEY": "hf_abcd",
        "WANDB_API_KEY": "0123456789secret", "HF_HUB_OFFLINE": "0123456789secret",
    }  # fmt: skip
    shown = environment_finding(environment).value
    assert shown == "HF_HUB_OFFLINE=... (not shown) NCCL_DEBUG=INFO"
    assert environment_finding({}).value == "nothing set that decides"


def test_a_configuration_is_a_digest_of_its_settings(project: Path) -> None:
    first = config_finding(Path("tiny.yaml"))
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text() + "# a remark\n")
    assert config_finding(Path("tiny.yaml")) == first and first.compared == "must"
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text().replace("0.01", "0.02"))
    assert config_finding(Path("tiny.yaml")).value != first.value
    assert config_finding(Path("absent.yaml")).state == "fail"
    (project / "part.yaml").write_text("train: {max_steps: 3}\n")
    part = config_finding(Path("part.yaml"))
    assert part.state == "ok" and "data" in part.value and part.compared == "must"


def test_an_old_lock_of_a_build_is_named_and_a_fresh_one_is_not(tmp_path: Path) -> None:
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    assert build_locks_finding(environment).state == "ok"
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert build_locks_finding(environment).state == "ok"
    made = lock.stat().st_mtime - OLD - 60.0
    os.utime(lock, (made, made))
    found = build_locks_finding(environment)
    assert found.state == "warn" and str(lock) in found.value


def test_the_commit_is_read_without_git(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == ""
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
    assert git_commit(tmp_path) == COMMIT[:12]
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT[::-1]}\n")
    assert git_commit(tmp_path) == COMMIT[::-1][:12]
    (git / "HEAD").write_text(f"{COMMIT}\n")
    assert git_commit(tmp_path) == COMMIT[:12]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / ".git").write_text(f"gitdir: {git}\n")
    assert git_commit(linked) == COMMIT[:12]
