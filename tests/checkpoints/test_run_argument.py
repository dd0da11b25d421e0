"""RUN of commands that use weights: PyTorch is waited for when the options are known to be right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.checkpoints.run_argument import weights_at
from tests.limits import HANG
from tests.program import environment

WRONG = (
    "export nowhere out --adapter --dtype bf16",
    "export nowhere out --base hub",
    "import hub out --experts-per-token 2",
    "generate nowhere --prompt a --logprobs 2",
    "generate nowhere --prompt a --stop=",
    "generate nowhere --prompt a\udc80",
    "evaluate nowhere --limit 3",
    "evaluate nowhere --needle --tasks arc",
    "evaluate nowhere --tasks ,",
    "inspect nowhere --prompt a\udc80 --output page.html",
)


def test_wrong_usage_does_not_wait_for_pytorch() -> None:
    script = (
        "import sys\nfrom llmkit.cli import main\n"
        f"codes = [main(command.split(' ')) for command in {WRONG!r}]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment(), text=True, capture_output=True, timeout=HANG)
    assert done.stdout == f"{[2] * len(WRONG)} False\n", done.stderr


def test_a_url_is_fetched_and_a_folder_is_as_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetched(url: str, given: dict[str, str]) -> str:
        asked.append(json.dumps([url, given]))
        return "/cache/step-00000004"

    monkeypatch.setattr("llmkit.checkpoints.fetching.at_hand", fetched)
    assert weights_at("runs/demo@4", {}) == Path("runs/demo@4") and not asked
    assert weights_at("s3://b/demo@4", {"HOME": "/h"}) == Path("/cache/step-00000004")
    assert asked == ['["s3://b/demo@4", {"HOME": "/h"}]']
