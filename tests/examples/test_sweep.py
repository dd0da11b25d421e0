"""The sweep that docs/examples has: W&B's agent starts `llmkit train` with the settings of the server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import yaml

from llmkit.config.keys import key_of
from llmkit.config.load import load
from tests.limits import HANG
from tests.monitor.fake_wandb import FakeServer
from tests.program import environment, events, make_project

SWEEP = Path(__file__).parents[2] / "docs" / "examples" / "sweep.yaml"
KEY = "canary" + "0123456789" * 3 + "abcd"
STEPS = ("train.max_steps=2", "evaluate.every_steps=2", "monitor.wandb.mode=online", "monitor.report=false")


def test_every_parameter_is_a_setting_that_the_command_line_takes() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    assert all(key_of(name) for name in sweep["parameters"])
    assert sweep["command"][-1] == "${args_no_hyphens}"
    load(SWEEP.parents[2] / "configs/demo.yaml", ["run.name=sweep-x", "optimizer.learning_rate=0.0005"])


def test_the_agent_trains_a_run_of_the_sweep(tmp_path: Path) -> None:
    make_project(tmp_path)
    sweep = yaml.safe_load(SWEEP.read_text())
    demo = "llmkit train configs/demo.yaml"
    assert demo in sweep["command"][2]
    sweep["command"][2] = sweep["command"][2].replace(demo, f"llmkit train tiny.yaml {' '.join(STEPS)}")
    (tmp_path / "home").mkdir()
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.sweep = yaml.safe_dump(sweep)
        server.commands = [
            {"type": "run", "run_id": "first-of-it", "program": "x", "args": {
                "optimizer.learning_rate": {"value": 0.00025}}},
        ]  # fmt: skip
        agent = subprocess.run(
            [sys.executable, "-m", "wandb", "agent", "--count", "1", "team/of-the-sweep/abc"],
            cwd=tmp_path, capture_output=True, text=True, timeout=HANG,
            env={
                **environment(), "HOME": str(tmp_path / "home"), "WANDB_API_KEY": KEY, "WANDB_MODE": "online",
                "WANDB_BASE_URL": server.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        )  # fmt: skip
        server.shutdown()
    assert agent.returncode == 0, agent.stdout + agent.stderr
    folder = tmp_path / "runs" / "sweep-first-of-it"
    assert events(folder)[-1] == "done", agent.stdout + agent.stderr
    assert load(folder / "config.yaml").config.optimizer.learning_rate == 0.00025
    assert list(server.histories) == ["first-of-it"]
    assert server.exit_codes == {"first-of-it": 0}
    upsert = next(each for each in server.upserts if each["name"] == "first-of-it")
    assert (upsert["sweep"], upsert["project"], upsert["entity"]) == ("abc", "of-the-sweep", "team")
    assert server.config("first-of-it")["optimizer.learning_rate"] == 0.00025
    assert any("eval/loss" in row for row in server.histories["first-of-it"])
