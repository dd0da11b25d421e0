"""The command lines that a plan prints start the very layout that it shows."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from llmkit.api import load
from llmkit.cluster.options import add_submit_options
from llmkit.config.load import Loaded
from llmkit.estimate.devices import Hardware
from llmkit.estimate.facts import facts_of
from llmkit.estimate.search import Ground, search
from llmkit.plan import Known, resolve_plan
from llmkit.planner.assumed import open_subject
from llmkit.planner.launch import launch_lines, override, overrides_of

ROOT = Path(__file__).parents[2]
LLAMA = str(ROOT / "configs/models/llama-3.1-8b.yaml")
RECIPE = str(ROOT / "configs/recipes/gpt2-124m.yaml")


def loaded_by(line: str) -> Loaded:
    """What a line of `launch_lines` starts."""
    words = shlex.split(line)
    if words[:2] == ["llmkit", "submit"]:
        parser = argparse.ArgumentParser()
        add_submit_options(parser)
        options = parser.parse_intermixed_args(words[2:])
        world = options.nodes * (options.gpus_per_node or options.processes_per_node)
        return load(options.config, [f"parallel.world_size={world}", *options.overrides])
    config, *overrides = words[words.index("train") + 1 :]
    return load(config, overrides)


@pytest.mark.parametrize(
    ("config", "given", "device", "per_node", "nodes"),
    [
        (LLAMA, [], "h100", 8, 4),
        (LLAMA, ["parallel.zero_stage=2", "train.micro_batch_size=1"], "a100", 8, 8),
        (RECIPE, ["parallel.layout=auto"], "rtx-4090", 2, 1),
        (RECIPE, ["parallel.world_size=64"], "l4", 1, 1),
    ],
)  # fmt: skip
def test_each_line_resolves_to_the_plan_that_is_shown(config, given, device, per_node, nodes):
    fleet = Hardware().fleet(device, per_node, nodes)
    subject = open_subject(load, config, given, None)
    known = Known(fleet.size, tokenizer_size=subject.vocab_size, device=facts_of(fleet.device))
    for candidate in search(subject.loaded, Ground(fleet, known)).families[:4]:
        overrides = [*given, *overrides_of(candidate, subject.loaded.config)]
        lines = launch_lines(config, overrides, fleet, subject.assumed)
        assert len(lines) == 2
        for line in lines:
            assert resolve_plan(loaded_by(line), known).facts() == candidate.plan.facts()


def test_how_a_run_is_started_depends_on_its_fleet():
    hardware = Hardware()
    many = launch_lines("c.yaml", ["a.b=1"], hardware.fleet("h100", 8, 2))
    assert many[0].startswith("accelerate launch --config_file launch/multinode.yaml --num_machines 2")
    assert many[1] == "llmkit submit c.yaml --nodes 2 --gpus-per-node 8 a.b=1"
    node = launch_lines("c.yaml", [], hardware.fleet("h100", 8))[0]
    assert node.startswith("accelerate launch --config_file launch/ddp.yaml --num_processes 8 -m llmkit")
    assert launch_lines("c.yaml", [], hardware.fleet("h100", 1))[0] == (
        "llmkit train c.yaml parallel.world_size=1"
    )


def test_values_are_yaml():
    assert override("a.b", True) == "a.b=true"
    assert override("a.b", [{"type": "text", "path": "x: y"}]) == "a.b=[{type: text, path: 'x: y'}]"
    assert override("a.b", "none") == "a.b=none"


def test_what_is_as_the_configuration_has_it_is_not_set_again():
    fleet = Hardware().fleet("h100", 8)
    given = ["parallel.zero_stage=1", "parallel.activation_checkpointing=selective"]
    subject = open_subject(load, LLAMA, given, None)
    ground = Ground(fleet, Known(tokenizer_size=subject.vocab_size))
    for candidate in search(subject.loaded, ground).fitting:
        layout = candidate.plan.layout
        if (layout.zero_stage, layout.engine, layout.tensor_parallel_size) == (1, "native", 1):
            names = {each.partition("=")[0] for each in overrides_of(candidate, subject.loaded.config)}
            assert "parallel.zero_stage" not in names and "parallel.engine" not in names
            break
    else:
        pytest.fail("the search has not tried ZeRO-1")
