"""What the page of a run says of its settings, code and machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llmkit.monitor.wandb_page import commit_of, page_config

MANIFEST = {
    "llmkit": "0.1.0 (source abc)", "python": "3.11", "torch": "2.13", "host": "node1", "device": "the CPU",
    "parameter_groups": [{"elements": 100}, {"elements": 23}], "config": "/home/me/x.yaml",
    "layout": {"zero_stage": 2}, "model": {"hidden_size": 8},
}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_facts_are_grouped() -> None:
    config = page_config(
        {"train": {"max_steps": 3}, "model": {"hidden_size": None, "mlp": "x"}}, MANIFEST, None
    )
    assert config["train"] == {"max_steps": 3}
    assert config["model"] == {"hidden_size": None, "mlp": "x"}
    assert config["model_resolved"] == {"hidden_size": 8}
    assert config["layout"] == {"zero_stage": 2} and config["trained_parameters"] == 123
    assert config["hardware"]["host"] == "node1" and config["hardware"]["cpu_cores"] > 0
    assert config["versions"]["torch"] == "2.13" and config["versions"]["wandb"]
    assert config["code"]["llmkit"] == "0.1.0 (source abc)"
    assert "x.yaml" not in str(config) and "forked_from" not in config
    assert page_config({}, {}, {"run_id": "a", "step": 4})["forked_from"] == {"run_id": "a", "step": 4}


def test_the_commit_is_that_of_the_code_and_no_remote_is_told(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None, "no commit yet"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "x.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "remote", "add", "origin", "https://user:canary@host/x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path / "code") == commit
    (tmp_path / "code" / "x.py").write_text("2")
    assert commit_of(tmp_path / "code") == f"{commit}+changes"
    (tmp_path / "runs").mkdir()
    assert commit_of(tmp_path / "runs") is None, "a folder of a repository that holds none of its files"
    assert commit_of(tmp_path / "missing") is None
