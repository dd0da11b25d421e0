"""The recipes in configs/recipes: each is accepted under each launch line that it names, and fits there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.load import load
from llmkit.config.model_section import UNSCALED
from llmkit.config.shape import ModelShape
from llmkit.plan import DeviceFacts, Known, Plan, resolve_plan
from llmkit.plan.memory import memory
from llmkit.plan.text import show_plan

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))
GPU = DeviceFacts(
    "cuda", has_bf16_units=True, free_bytes=78 * 2**30, capability=(9, 0), triton=True, varlen=True
)
"""An H100 of 80 GB."""
LAUNCHES = {
    "1 GPU": (1, "llmkit train"),
    "8 GPUs": (8, "torchrun --nproc_per_node 8 -m llmkit train"),
    "8 nodes": (64, "sbatch --nodes 8 slurm/train.sbatch"),
}


def plan_of(path: Path, launch: str) -> Plan:
    """By the launch line in the recipe's comment."""
    (line,) = re.findall(rf"^# {launch}: +(.*)$", path.read_text(), re.MULTILINE)
    processes, start = LAUNCHES[launch]
    assert line.startswith(f"{start} {path.relative_to(ROOT)}")
    loaded = load(path, shlex.split(line.removeprefix(f"{start} {path.relative_to(ROOT)}")))
    assert loaded.remarks == ()
    size = loaded.config.model.vocab_size
    known = Known(world_size=processes, tokenizer_size=257 if size == "auto" else size, device=GPU)
    return resolve_plan(loaded, known)


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_launch_line_is_accepted_and_fits(path: Path, launch: str) -> None:
    plan = plan_of(path, launch)
    assert show_plan(plan)
    assert isinstance(plan.model, ModelShape) and plan.precision.name == "bf16"
    assert memory(plan).on_device < GPU.free_bytes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_head_tells_the_tokens_of_the_run(path: Path) -> None:
    config, text = load(path).config, path.read_text()
    assert config.model.rope_scaling == UNSCALED, "rows are as long as those of pretraining"
    ((steps, tokens),) = re.findall(r"([0-9,]+) steps of ([0-9,]+) tokens", text)
    assert int(steps.replace(",", "")) == config.train.max_steps
    assert int(tokens.replace(",", "")) == config.train.global_batch_size * config.data.sequence_length


PREDICTED = re.compile(r"^# Predicted by .*: 1 GPU (.*), 8 GPUs (.*), 8 nodes (.*)\.$", re.MULTILINE)
SECONDS = {"min": 60, "h": 3600, "d": 86400}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "path", [each for each in RECIPES if PREDICTED.search(each.read_text())], ids=lambda path: path.stem
)
def test_the_head_says_how_long_the_plan_takes_it_to_be(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((*times,),) = PREDICTED.findall(path.read_text())
    for shown, (nodes, gpus) in zip(times, ((1, 1), (1, 8), (8, 8)), strict=True):
        asked = ["--device", "h100", "--nodes", str(nodes), "--gpus-per-node", str(gpus), "--json"]
        assert main(["plan", str(path), *asked]) == 0
        number, unit = shown.split()
        assert json.loads(capsys.readouterr().out)["run"]["seconds"] == pytest.approx(
            float(number) * SECONDS[unit], rel=0.1
        )
